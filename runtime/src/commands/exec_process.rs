//! The process that `vmrt exec` runs: that of the container's specification, changed by options, or that of a file.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Process;

use super::refusal::{refuse_if, refuse_preserve_fds};
use crate::base::container_id::ContainerId;
use crate::base::log::Log;
use crate::cli::ExecArgs;
use crate::commands::error::Error;
use crate::sandbox::context::Context;
use crate::spec::apparmor;
use crate::spec::capabilities;
use crate::spec::check::check_process;
use crate::spec::error::BundleError;
use crate::spec::parse::parse;

/// Refuses options that are not supported.
pub(super) fn check_args(args: &ExecArgs) -> Result<(), Error> {
    refuse_preserve_fds(args.preserve_fds)?;
    let reason = "is refused: the guest's kernel has no SELinux";
    refuse_if(args.process_label.as_ref().is_some_and(|label| !label.is_empty()), "--process-label", reason)?;
    let reason = "is refused: the guest's kernel has no AppArmor";
    refuse_if(apparmor_profile(args).is_some_and(|profile| profile != apparmor::UNCONFINED), "--apparmor", reason)?;
    sub_cgroup(&args.cgroup).map(drop)
}

fn apparmor_profile(args: &ExecArgs) -> Option<&str> {
    args.apparmor.as_deref().filter(|profile| !profile.is_empty())
}

/// Returns the path in `--cgroup`. Only one may be given, without controllers: guests have cgroup v2, in which all controllers share
/// one hierarchy.
pub(super) fn sub_cgroup(given: &[String]) -> Result<Option<PathBuf>, Error> {
    match given {
        [] => Ok(None),
        [path] if !path.contains(':') => Ok(Some(path.into())),
        [first, ..] => Err(Error::SubCgroup(first.clone())),
    }
}

/// Builds the process to run in a container.
pub(super) fn build(args: &ExecArgs, id: &ContainerId, context: &Context) -> Result<Process, Error> {
    let log = &context.log;
    let mut process = match &args.process {
        Some(path) => read(path, log)?,
        None => {
            let process = context.store.spec(id)?.process().clone().ok_or(BundleError::NoProcess)?;
            from_options(args, process, log)?
        }
    };
    check_process(&process)?;
    apparmor::remove_default(&mut process, log);
    capabilities::remove_unsupported_ambient(&mut process, log);
    Ok(process)
}

fn read(path: &Path, log: &Log) -> Result<Process, Error> {
    let text = fs::read(path).map_err(|source| Error::ProcessFile { path: path.into(), source })?;
    parse(&text, "", log).map_err(|source| Error::ProcessJson { path: path.into(), source })
}

fn from_options(args: &ExecArgs, mut process: Process, log: &Log) -> Result<Process, Error> {
    if args.command.is_empty() {
        return Err(Error::NoExecArgs);
    }
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    process.set_console_size(None);
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    process.env_mut().get_or_insert_default().extend(args.env.iter().cloned());
    if let Some(profile) = apparmor_profile(args) {
        process.set_apparmor_profile(Some(profile.to_owned()));
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if !args.cap.is_empty() {
        capabilities::add(&mut process, &args.cap, log);
    }
    set_user(&mut process, args)?;
    Ok(process)
}

fn set_user(process: &mut Process, args: &ExecArgs) -> Result<(), Error> {
    let user = process.user_mut();
    if let Some(text) = args.user.as_deref().filter(|text| !text.is_empty()) {
        let (uid, gid) = text.split_once(':').map_or((text, None), |(uid, gid)| (uid, Some(gid)));
        user.set_uid(number(uid, "uid")?);
        if let Some(gid) = gid {
            user.set_gid(number(gid, "gid")?);
        }
    }
    if !args.additional_gids.is_empty() {
        user.additional_gids_mut().get_or_insert_default().extend(&args.additional_gids);
    }
    Ok(())
}

fn number(text: &str, what: &'static str) -> Result<u32, Error> {
    text.parse().map_err(|source| Error::Number { text: text.to_owned(), what, source })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Arguments, Command, context};

    fn built(options: &[&str]) -> Result<Process, Error> {
        let root = tempfile::tempdir().unwrap();
        let line = ["vmrt", "--root", root.path().to_str().unwrap(), "exec"].into_iter().chain(options.iter().copied());
        let Arguments { global, command: Command::Exec(args), .. } = Arguments::try_parse_from(line).unwrap() else {
            unreachable!()
        };
        let (context, id) = (context(&global, 0).unwrap(), "web".parse().unwrap());
        let locked = context.store.claim(&id).unwrap();
        locked.write_spec(&serde_json::from_str(crate::spec::STARTER).unwrap()).unwrap();
        check_args(&args)?;
        build(&args, &id, &context)
    }

    #[test]
    fn options_change_the_process_of_the_specification() {
        let process = built(&["-u", "5:6", "-g", "7", "-e", "A=b", "--cwd", "/tmp", "web", "id", "-u"]).unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (5, 6));
        assert_eq!(process.user().additional_gids().as_deref(), Some(&[7][..]));
        assert_eq!(process.args().as_ref().unwrap(), &["id", "-u"]);
        assert_eq!(process.env().as_ref().unwrap().last().unwrap(), "A=b");
        assert_eq!((process.cwd().as_path(), process.terminal()), (Path::new("/tmp"), Some(false)));
    }

    #[test]
    fn empty_options_have_no_effect_and_other_apparmor_profiles_are_refused() {
        let process = built(&["-u", "", "--apparmor", "unconfined", "web", "id"]).unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
        assert!(process.apparmor_profile().is_none());
        built(&["--apparmor", "", "--console-socket", "", "web", "id"]).unwrap();
        let refused = built(&["--apparmor", "mine", "web", "id"]).unwrap_err().to_string();
        assert!(refused.starts_with("--apparmor is refused"), "{refused}");
    }

    #[test]
    fn a_process_in_a_file_may_have_no_user() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), r#"{"cwd": "/", "args": ["id"], "user": null}"#).unwrap();
        let process = built(&["-p", file.path().to_str().unwrap(), "web"]).unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
    }

    #[test]
    fn only_one_cgroup_path_without_controllers_is_accepted() {
        let of = |given: &[&str]| sub_cgroup(&given.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["/sub"]).unwrap().as_deref(), Some(Path::new("/sub")));
        assert!(of(&[]).unwrap().is_none());
        assert_eq!(of(&["cpu:/sub"]).unwrap_err().to_string(), "invalid --cgroup argument: cpu:/sub");
        assert!(of(&["/a", "/b"]).is_err());
    }

    #[test]
    fn invalid_options_are_reported_in_runcs_words() {
        let text = |options: &[&str]| built(options).unwrap_err().to_string();
        assert_eq!(text(&["web"]), "process args cannot be empty");
        assert_eq!(text(&["--cwd", "rel", "web", "ls"]), "Cwd must be an absolute path");
        assert_eq!(text(&["-e", "FOO", "web", "ls"]), "invalid environment variable: \"FOO\"");
        assert_eq!(text(&["-u", "foo", "web", "ls"]), "parsing foo as int for uid failed");
        assert_eq!(text(&["-u", "5:6:", "web", "ls"]), "parsing 6: as int for gid failed");
        assert_eq!(text(&["-p", "/nonexistent", "web"]), "read /nonexistent");
        assert!(text(&["--preserve-fds", "1", "web", "ls"]).starts_with("--preserve-fds is refused"));
        assert!(text(&["--cgroup", "cpu:x", "web", "ls"]).starts_with("invalid --cgroup argument"));
    }
}
