use super::*;
use crate::spec::block_io::BlockIo;

fn limits() -> Limits {
    let block_io = BlockIo::default();
    let (cpu_shares, cpu_idle) = (Some(1024), None);
    Limits { memory: 1 << 30, pids: 64, cpu_quota: None, cpu_shares, cpu_idle, cpus: None, mems: None, block_io }
}

#[test]
fn v2_files_get_the_limits() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["memory.max", "pids.max", "cpu.max", "cpu.weight"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    set_v2(dir.path(), &Limits { cpu_quota: Some((50_000, 100_000)), ..limits() }).unwrap();
    let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("memory.max"), "1073741824");
    assert_eq!(read("cpu.max"), "50000 100000");
    assert_eq!(read("cpu.weight"), "39");
}

#[test]
fn a_missing_controller_is_an_error_that_names_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let error = set_v2(dir.path(), &limits()).unwrap_err();
    assert_eq!(error.to_string(), format!("set {}", dir.path().join("memory.max").display()));
}

#[test]
fn paths_lead_down_and_a_directory_is_no_hierarchy() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |path: &str| Cgroup::plan_below(dir.path(), Path::new(path));
    for path in ["/../x", "/x/../y", "/", "", ".."] {
        assert!(matches!(plan(path), Err(CgroupError::Path(_))), "{path}");
    }
    assert!(matches!(plan("/x"), Err(CgroupError::NotMounted)));
}

#[test]
fn what_was_planned_and_not_made_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    fs::create_dir(&made).unwrap();
    let cgroup = Cgroup { dirs: vec![dir.path().join("never"), made.clone()] };
    assert!(cgroup.remove().is_empty() && !made.exists());
}

#[test]
fn a_cgroup_in_use_is_refused_in_runcs_words() {
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("below");
    fs::create_dir(&below).unwrap();
    let claim = || Cgroup { dirs: vec![dir.path().into()] }.claim().map_err(|e| e.to_string());
    fs::write(dir.path().join("cgroup.procs"), "1\n").unwrap();
    fs::write(below.join("cgroup.procs"), "2\n3\n").unwrap();
    assert_eq!(claim().unwrap_err(), "container's cgroup is not empty: 3 process(es) found");
    fs::write(dir.path().join("cgroup.procs"), "").unwrap();
    fs::remove_dir_all(&below).unwrap();
    fs::write(dir.path().join("cgroup.freeze"), "1\n").unwrap();
    assert_eq!(claim().unwrap_err(), "container's cgroup unexpectedly frozen");
    fs::write(dir.path().join("cgroup.freeze"), "0\n").unwrap();
    claim().unwrap();
}

#[test]
fn who_is_not_root_has_it_beside_their_own() {
    let at = |memberships: &str| beside(memberships, Path::new("/vmrt-web"));
    assert_eq!(at("1:name=x:/a\n0::/user.slice/session.scope\n"), Path::new("/user.slice/vmrt-web"));
    for nowhere in ["0::/own\n", "0::/\n", "0::/../..\n", "4:memory:/a/b\n", ""] {
        assert_eq!(at(nowhere), Path::new("/vmrt-web"), "{nowhere}");
    }
}

#[test]
fn what_the_host_does_not_let_one_have_is_told_from_what_is_wrong() {
    let failed = |errno| io_error("create", Path::new("/x"))(io::Error::from_raw_os_error(errno));
    use nix::libc::{EACCES, EIO, ENOENT, EPERM, EROFS};
    assert!([EACCES, EPERM, EROFS, ENOENT].into_iter().all(|errno| failed(errno).is_refusal()));
    assert!(CgroupError::NotMounted.is_refusal());
    assert!(!failed(EIO).is_refusal() && !CgroupError::Frozen.is_refusal());
}
