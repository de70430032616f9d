//! The image's user: `user`, `uid`, `user:group`, `uid:gid` or a mix (image-spec: config.md).

use std::fs;
use std::path::Path;

use oci_spec::runtime::User;

use super::Error;
use crate::bundle::config;

/// Resolves names by the image's own `/etc/passwd` and `/etc/group`.
pub(super) fn resolve(text: &str, rootfs: &Path) -> Result<User, Error> {
    let unknown = || Error::UnknownUser { user: text.into() };
    let database = |name: &str| fs::read_to_string(rootfs.join("etc").join(name)).unwrap_or_default();
    let (passwd, group_file) = (database("passwd"), database("group"));
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let account = line(&passwd, user);
    let uid = user.parse().ok().or_else(|| number(account?, 2)).ok_or_else(unknown)?;
    let Some(group) = group else {
        let mut found = config::user((uid, account.and_then(|account| number(account, 3)).unwrap_or(0)));
        found.set_additional_gids(account.map(|account| memberships(&group_file, field(account, 0))));
        return Ok(found);
    };
    let gid = group.parse().ok().or_else(|| number(line(&group_file, group)?, 2)).ok_or_else(unknown)?;
    Ok(config::user((uid, gid)))
}

/// The line with this name or, failing that, this id.
fn line<'a>(file: &'a str, name: &str) -> Option<&'a str> {
    let by = |index| file.lines().find(move |line| field(line, index) == name);
    by(0).or_else(|| by(2))
}

fn field(line: &str, index: usize) -> &str {
    line.split(':').nth(index).unwrap_or_default()
}

fn number(line: &str, index: usize) -> Option<u32> {
    field(line, index).parse().ok()
}

/// The groups that list a user as a member.
fn memberships(group_file: &str, user: &str) -> Vec<u32> {
    let lists_user = |line: &&str| field(line, 3).split(',').any(|member| member == user);
    group_file.lines().filter(lists_user).filter_map(|line| number(line, 2)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> Option<(u32, u32, Vec<u32>)> {
        let rootfs = tempfile::tempdir().unwrap();
        fs::create_dir(rootfs.path().join("etc")).unwrap();
        fs::write(rootfs.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n").unwrap();
        fs::write(rootfs.path().join("etc/group"), "root:x:0:\nlog:x:4:web,root\nweb:x:34:\n").unwrap();
        let user = resolve(text, rootfs.path()).ok()?;
        Some((user.uid(), user.gid(), user.additional_gids().clone().unwrap_or_default()))
    }

    #[test]
    fn user_and_group_names_resolve_to_ids() {
        assert_eq!(numbers("web"), Some((33, 34, vec![4])));
        assert_eq!(numbers("33"), Some((33, 34, vec![4])));
        assert_eq!(numbers("1000"), Some((1000, 0, vec![])));
        assert_eq!(numbers("web:log"), Some((33, 4, vec![])));
        assert_eq!(numbers("1000:50"), Some((1000, 50, vec![])));
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert_eq!(numbers("nobody"), None);
        assert_eq!(numbers("web:nothing"), None);
    }
}
