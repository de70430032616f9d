use super::*;
use crate::spec::block_io::BlockIo;

fn limits() -> Limits {
    let block_io = BlockIo::default();
    let (cpu_shares, cpu_idle) = (Some(1024), None);
    let swap = Some(1 << 20);
    Limits { memory: 1 << 30, swap, pids: 64, cpu_quota: None, cpu_shares, cpu_idle, cpus: None, mems: None, block_io }
}

#[test]
fn limits_are_written_to_v2_files() {
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
fn swap_is_limited_beside_memory_where_the_host_accounts_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
    for name in ["memory.max", "pids.max", "cpu.weight", "memory.limit_in_bytes"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    set_v2(dir.path(), &limits()).unwrap();
    set_v1("memory", dir.path(), &limits()).unwrap();
    assert_eq!(read("memory.limit_in_bytes"), "1073741824");
    for name in ["memory.swap.max", "memory.memsw.limit_in_bytes"] {
        assert!(!dir.path().join(name).exists(), "{name} was created");
        fs::write(dir.path().join(name), "").unwrap();
    }
    // Unlike files of the kernel, these keep what was longer before.
    let set = |swap| {
        for name in ["memory.swap.max", "memory.memsw.limit_in_bytes", "memory.limit_in_bytes"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        set_v2(dir.path(), &Limits { swap, ..limits() }).unwrap();
        set_v1("memory", dir.path(), &Limits { swap, ..limits() }).unwrap();
        [read("memory.swap.max"), read("memory.memsw.limit_in_bytes")]
    };
    assert_eq!(set(Some(1 << 20)), ["1048576", "1074790400"]);
    assert_eq!(set(Some(0)), ["0", "1073741824"]);
    assert_eq!(set(None), ["max", "-1"]);
}

#[test]
fn a_limit_without_its_controller_is_an_error_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let error = set_v2(dir.path(), &limits()).unwrap_err();
    assert_eq!(error.to_string(), format!("set {}", dir.path().join("memory.max").display()));
}

#[test]
fn a_path_above_the_root_or_outside_a_hierarchy_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |path: &str| Cgroup::plan_below(dir.path(), Path::new(path));
    for path in ["/../x", "/x/../y", "/", "", ".."] {
        assert!(matches!(plan(path), Err(CgroupError::Path(_))), "{path}");
    }
    assert!(matches!(plan("/x"), Err(CgroupError::NotMounted)));
}

#[test]
fn a_partly_created_cgroup_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let created = dir.path().join("created");
    fs::create_dir(&created).unwrap();
    let cgroup = Cgroup { dirs: vec![dir.path().join("missing"), created.clone()] };
    assert!(cgroup.remove().is_empty() && !created.exists());
}

#[test]
fn a_cgroup_in_use_is_refused_in_runcs_words() {
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("below");
    fs::create_dir(&below).unwrap();
    let check = || Cgroup { dirs: vec![dir.path().into()] }.check_unused().map_err(|e| e.to_string());
    fs::write(dir.path().join("cgroup.procs"), "1\n").unwrap();
    fs::write(below.join("cgroup.procs"), "2\n3\n").unwrap();
    assert_eq!(check().unwrap_err(), "container's cgroup is not empty: 3 process(es) found");
    fs::write(dir.path().join("cgroup.procs"), "").unwrap();
    fs::remove_dir_all(&below).unwrap();
    fs::write(dir.path().join("cgroup.freeze"), "1\n").unwrap();
    assert_eq!(check().unwrap_err(), "container's cgroup unexpectedly frozen");
    fs::write(dir.path().join("cgroup.freeze"), "0\n").unwrap();
    check().unwrap();
}

#[test]
fn the_cgroup_of_a_caller_without_root_is_a_sibling_of_its_own() {
    let at = |memberships: &str| sibling(memberships, Path::new("/vmrt-web"));
    assert_eq!(at("1:name=x:/a\n0::/user.slice/session.scope\n"), Path::new("/user.slice/vmrt-web"));
    for no_parent in ["0::/own\n", "0::/\n", "0::/../..\n", "4:memory:/a/b\n", ""] {
        assert_eq!(at(no_parent), Path::new("/vmrt-web"), "{no_parent}");
    }
}

#[test]
fn a_missing_permission_or_controller_is_a_refusal_and_other_errors_are_not() {
    let failed = |errno| io_error("create", Path::new("/x"))(io::Error::from_raw_os_error(errno));
    use nix::libc::{EACCES, EIO, ENOENT, EPERM, EROFS};
    assert!([EACCES, EPERM, EROFS, ENOENT].into_iter().all(|errno| failed(errno).is_refusal()));
    assert!(CgroupError::NotMounted.is_refusal());
    assert!(!failed(EIO).is_refusal() && !CgroupError::Frozen.is_refusal());
}
