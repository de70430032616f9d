//! The process and its environment: everything that `config.json` says about them.

use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{CommandResult, Runtime, is_vmrt};

#[test]
fn the_exit_status_passes_through() {
    let runtime = Runtime::new();
    for status in [0, 1, 42, 254, 255] {
        assert_eq!(runtime.run(&Bundle::script(&format!("exit {status}"))).code, status);
    }
}

#[test]
fn death_by_a_signal_exits_with_128_and_its_number() {
    let runtime = Runtime::new();
    // Only a fault kills a PID 1 that handles no signals.
    let python = "import ctypes; ctypes.string_at(0)";
    assert_eq!(runtime.run(&Bundle::debian(["python3", "-c", python])).code, 139);
}

#[test]
fn user_groups_directory_environment_and_limits_are_as_configured() {
    let runtime = Runtime::new();
    let script = "echo uid=$(id -u); echo gid=$(id -g); echo groups=$(id -G); echo cwd=$PWD; echo a=$A; echo files=$(ulimit -n);\
        echo hard=$(ulimit -Hn); echo umask=$(umask); echo oom=$(cat /proc/self/oom_score_adj); echo home=$HOME; \
        echo host=$(hostname); echo domain=$(cat /proc/sys/kernel/domainname); echo pid=$$";
    let bundle = Bundle::script(script)
        .with("/process/user", json!({"uid": 1000, "gid": 50, "additionalGids": [5, 6], "umask": 23}))
        .with("/process/cwd", json!("/var/tmp"))
        .with("/process/env/-", json!("A=one two"))
        .with("/process/env/-", json!("HOME=/var"))
        .with("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]))
        .with("/process/oomScoreAdj", json!(100))
        .with("/hostname", json!("box"));
    let done = runtime.run(&bundle).ok();
    let expected = [
        ("uid", "1000"),
        ("gid", "50"),
        ("groups", "50 5 6"),
        ("cwd", "/var/tmp"),
        ("a", "one two"),
        ("files", "100"),
        ("hard", "200"),
        ("umask", "0027"),
        ("oom", "100"),
        ("home", "/var"),
        ("host", "box"),
        ("pid", "1"),
    ];
    done.assert_values(&expected);
}

#[test]
fn a_missing_working_directory_is_made() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["pwd"]).with("/process/cwd", json!("/deep/in/it"));
    assert_eq!(runtime.run(&bundle).ok().text(), "/deep/in/it");
}

#[test]
fn capabilities_are_as_configured() {
    let runtime = Runtime::new();
    let script = "grep -E 'Cap|NoNewPrivs' /proc/self/status | sed 's/:[ \\t]*/=/'; chown 1:1 /bin && echo chown=yes || echo chown=no";
    let set = json!(["CAP_CHOWN", "CAP_KILL"]);
    let bundle = Bundle::script(script).with("/process/noNewPrivileges", json!(true)).with(
        "/process/capabilities",
        json!({"bounding": set, "effective": set, "permitted": set, "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}),
    );
    let done = runtime.run(&bundle).ok();
    done.assert_values(&[
        ("CapBnd", "0000000000000021"),
        ("CapEff", "0000000000000021"),
        ("CapPrm", "0000000000000021"),
        ("CapInh", "0000000000000020"),
        ("CapAmb", "0000000000000020"),
        ("NoNewPrivs", "1"),
        ("chown", "yes"),
    ]);
}

#[test]
fn unavailable_capabilities_are_left_out_with_a_warning() {
    let runtime = Runtime::new();
    let set = json!(["CAP_KILL", "CAP_OF_TOMORROW"]);
    let bundle = Bundle::script("grep -E 'Cap(Bnd|Amb)' /proc/self/status | sed 's/:[ \\t]*/=/'").with(
        "/process/capabilities",
        json!({"bounding": set, "effective": set, "permitted": set, "inheritable": [], "ambient": ["CAP_KILL"]}),
    );
    let done = runtime.run(&bundle).ok();
    let sets = |done: &CommandResult| (done.value("CapBnd"), done.value("CapAmb"));
    let expected = ("0000000000000020".to_owned(), "0000000000000000".to_owned());
    assert_eq!(sets(&done), expected);
    let other = runtime.run(&bundle.with("/process/user", json!({"uid": 1000, "gid": 1000}))).ok();
    assert_eq!(sets(&other), expected);
    if is_vmrt() {
        let (warnings, other_warnings) = (done.message(), other.message());
        assert!(warnings.contains("capabilities: [CAP_OF_TOMORROW]"), "{warnings}");
        // Root gets its permitted capabilities with every program, so it loses nothing.
        assert!(!warnings.contains("ambient"), "{warnings}");
        assert!(
            other_warnings.contains("can't raise ambient capabilities") && other_warnings.contains("[CAP_KILL]"),
            "{other_warnings}"
        );
    }
}

#[test]
fn root_without_capabilities_has_no_privileges() {
    let runtime = Runtime::new();
    let script = "grep CapEff /proc/self/status | sed 's/:[ \\t]*/=/'; grep NoNewPrivs /proc/self/status | sed 's/:[ \\t]*/=/'; \
        chown 1:1 /bin 2>/dev/null && echo chown=yes || echo chown=no";
    let bundle = Bundle::script(script)
        .with("/process/noNewPrivileges", json!(false))
        .with("/process/capabilities", json!({"bounding": [], "effective": [], "permitted": []}));
    let done = runtime.run(&bundle).ok();
    assert_eq!(done.value("CapEff"), "0000000000000000");
    assert_eq!((done.value("chown"), done.value("NoNewPrivs")), ("no".into(), "0".into()));
}

#[test]
fn a_container_has_its_own_namespaces() {
    let runtime = Runtime::new();
    let script = "echo processes=$(ls -d /proc/[0-9]* | wc -l); echo loopback=$(ip addr show lo | grep -c 127.0.0.1); \
        echo up=$(ip link show lo | grep -c '[<,]UP[,>]'); echo devices=$(ls /sys/class/net | tr '\\n' ' '); \
        ping -c 1 -W 5 127.0.0.1 >/dev/null && echo ping=yes; ipcmk -M 100 2>/dev/null; echo mounts=$(wc -l </proc/self/mounts)";
    let done = runtime.run(&Bundle::script(script).with_capabilities()).ok();
    // The shell, and `ls` and `wc` of the script.
    assert!(done.value("processes").parse::<u32>().unwrap() <= 4, "{}", done.text());
    done.assert_values(&[("loopback", "1"), ("up", "1"), ("devices", "lo"), ("ping", "yes")]);
}

#[test]
fn masked_paths_are_hidden_and_readonly_paths_are_read_only() {
    let runtime = Runtime::new();
    let script = "echo keys=$(cat /proc/keys 2>/dev/null | wc -c); echo firmware=$(ls /sys/firmware 2>/dev/null | wc -l); \
        echo 1 2>/dev/null >/proc/sys/kernel/panic && echo sysctl=yes || echo sysctl=no; \
        echo h 2>/dev/null >/proc/sysrq-trigger && echo sysrq=yes || echo sysrq=no; \
        echo mine=$(cat /secret 2>/dev/null | wc -c); touch /locked/x 2>/dev/null && echo locked=open || echo locked=yes; \
        touch /sys/x 2>/dev/null && echo sys=open || echo sys=locked";
    let bundle = Bundle::script(script)
        .with_capabilities()
        .with("/linux/maskedPaths/-", json!("/secret"))
        .with("/linux/maskedPaths/-", json!("/not/there"))
        .with("/linux/readonlyPaths/-", json!("/locked"));
    std::fs::write(bundle.file("secret"), "secret").unwrap();
    std::fs::create_dir(bundle.file("locked")).unwrap();
    let done = runtime.run(&bundle).ok();
    done.assert_values(&[
        ("keys", "0"),
        ("firmware", "0"),
        ("sysctl", "no"),
        ("sysrq", "no"),
        ("mine", "0"),
        ("locked", "yes"),
        ("sys", "locked"),
    ]);
}

#[test]
fn default_and_configured_devices_exist() {
    let runtime = Runtime::new();
    let script = "for name in null zero full random urandom tty; do echo $name=$(stat -c %t:%T:%a /dev/$name); done; \
        echo extra=$(stat -c %F:%t:%T:%a:%u:%g /dev/deep/extra); echo stdin=$(readlink /dev/stdin); echo fd=$(readlink /dev/fd); \
        echo ptmx=$(readlink /dev/ptmx); echo zeros=$(head -c 5 /dev/deep/extra | od -An -tx1 | tr -d ' '); \
        echo x >/dev/null && echo written=yes; echo shm=$(stat -f -c %T /dev/shm); echo mqueue=$(grep -c mqueue /proc/mounts)";
    let bundle = Bundle::script(script).with(
        "/linux/devices",
        json!([{"path": "/dev/deep/extra", "type": "c", "major": 1, "minor": 5, "fileMode": 416, "uid": 1, "gid": 2}]),
    )
    .with("/linux/resources/devices", json!([{"allow": true, "access": "rwm"}]))
    .with_capabilities();
    let done = runtime.run(&bundle).ok();
    done.assert_values(&[
        ("null", "1:3:666"),
        ("zero", "1:5:666"),
        ("full", "1:7:666"),
        ("random", "1:8:666"),
        ("urandom", "1:9:666"),
        ("tty", "5:0:666"),
        ("extra", "character special file:1:5:640:1:2"),
        ("stdin", "/proc/self/fd/0"),
        ("fd", "/proc/self/fd"),
        ("zeros", "0000000000"),
        ("written", "yes"),
        ("mqueue", "1"),
    ]);
    assert!(done.value("ptmx").ends_with("pts/ptmx"));
}

#[test]
fn host_devices_are_refused_by_name_unless_all_devices_are_allowed() {
    let runtime = Runtime::new();
    if !is_vmrt() {
        return;
    }
    let script = "for name in kvm null mine nobodys; do stat -c %F:%t:%T /dev/$name; done 2>/dev/null; cat /dev/mine";
    let device = |path: &str, major, minor| json!({"path": path, "type": "c", "major": major, "minor": minor});
    let devices = [device("/dev/kvm", 10, 232), device("/dev/mine", 1, 3), device("/dev/nobodys", 500, 5000)];
    let bundle = Bundle::script(script).with("/linux/devices", json!(devices));
    let done = runtime.run(&bundle);
    assert_eq!(done.code, 1);
    assert!(done.message().contains("/dev/kvm (character 10:232) is a device of the host"), "{}", done.message());
    let bundle =
        bundle.with("/linux/resources/devices", json!([{"allow": true, "access": "rwma"}])).with_capabilities();
    let done = runtime.run(&bundle).ok();
    let nodes = ["1:3", "1:3", "1f4:1388"].map(|number| format!("character special file:{number}"));
    assert_eq!(done.text().lines().collect::<Vec<_>>(), nodes);
    assert!(done.message().contains("devices of the host that a guest has not are left out: /dev/kvm"), "{done:?}");
    assert!(done.message().contains("is taken for"), "an odd kind of access: {done:?}");
}

#[test]
fn device_rules_are_enforced() {
    let runtime = Runtime::new();
    let script = "exec 2>&1; (exec 3</dev/readable) && echo read; (exec 3>/dev/readable) || echo not written; \
        (exec 3</dev/denied) || echo not read; (exec 3</dev/late) || echo no longer; echo x >/dev/null && echo null";
    let device =
        |path: &str, major: u32, minor: u32| json!({"path": path, "type": "c", "major": major, "minor": minor});
    let allow = |allow: bool, major: u32, minor: u32, access: &str| json!({"allow": allow, "type": "c", "major": major, "minor": minor, "access": access});
    let devices = [device("/dev/readable", 10, 229), device("/dev/denied", 10, 200), device("/dev/late", 1, 11)];
    let rules = [
        json!({"allow": false, "access": "rwm"}),
        allow(true, 10, 229, "r"),
        allow(true, 1, 11, "rw"),
        allow(false, 1, 11, "rw"),
    ];
    let bundle = Bundle::script(script)
        .with_capabilities()
        .with("/linux/devices", json!(devices))
        .with("/linux/resources/devices", json!(rules));
    let text = runtime.run(&bundle).ok().text();
    let results: Vec<_> = text.lines().map(|line| line.rsplit(": ").next().unwrap_or_default()).collect();
    let refused = "Operation not permitted";
    assert_eq!(results, ["read", refused, "not written", refused, "not read", refused, "no longer", "null"]);
}

#[test]
fn scheduling_and_personality_are_as_configured() {
    let runtime = Runtime::new();
    let python = "import ctypes, os; print(f'policy={os.sched_getscheduler(0)}'); \
        print(f'nice={os.getpriority(os.PRIO_PROCESS, 0)}'); print(f'io={ctypes.CDLL(None).syscall(252, 1, 0):x}'); \
        print(f'machine={os.uname().machine}')";
    let bundle = Bundle::debian(["python3", "-c", python])
        .with("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 5}))
        .with("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 6}))
        .with("/linux/personality", json!({"domain": "LINUX32"}));
    let done = runtime.run(&bundle).ok();
    done.assert_values(&[("policy", "3"), ("nice", "5"), ("io", "4006"), ("machine", "i686")]);
    let bundle = Bundle::busybox(["sleep", "1000"]).with("/linux/personality", json!({"domain": "LINUX32"}));
    let container = runtime.start_container(&bundle);
    assert_eq!(container.exec(&["uname", "-m"]).ok().text(), "i686", "an exec has the container's");
}

#[test]
fn only_the_standard_streams_are_open() {
    let runtime = Runtime::new();
    let python = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')))";
    // The last descriptor is the directory that is being listed.
    assert_eq!(runtime.run(&Bundle::debian(["python3", "-c", python])).ok().text(), "[0, 1, 2, 3]");
}

#[test]
fn sysctls_are_set() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/msgmax"])
        .with("/linux/sysctl", json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "12345"}));
    assert_eq!(runtime.run(&bundle).ok().text(), "1\n12345");
}

#[test]
fn an_apparmor_profile_is_refused_except_an_engines_default() {
    let runtime = Runtime::new();
    let with = |name: &str| Bundle::busybox(["true"]).with("/process/apparmorProfile", json!(name));
    let done = runtime.run(&with("mine"));
    assert!(done.code == 1 && done.message().contains("apparmorProfile"), "{done:?}");
    let done = runtime.run(&with("docker-default")).ok();
    assert!(done.message().contains("docker-default is not applied"), "{done:?}");
}

#[test]
fn a_user_can_have_a_working_directory_that_only_root_may_enter() {
    let runtime = Runtime::new();
    let bundle = Bundle::script("id -u; pwd")
        .with("/process/cwd", json!("/private"))
        .with("/process/user", json!({"uid": 7, "gid": 7}));
    std::fs::create_dir(bundle.file("private")).unwrap();
    std::fs::set_permissions(bundle.file("private"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(runtime.run(&bundle).ok().text(), "7\n/private");
}

#[test]
fn the_last_value_of_a_variable_counts_and_an_empty_home_is_filled() {
    let runtime = Runtime::new();
    let bundle = Bundle::script("env | sort; echo slack=$(cat /proc/self/timerslack_ns)")
        .with("/process/env", json!(["A=1", "HOME=", "PATH=/bin", "A=2"]));
    let done = runtime.run(&bundle).ok();
    done.assert_values(&[("A", "2"), ("PATH", "/bin"), ("slack", "50000")]);
    assert!(!done.value("HOME").is_empty() && done.text().matches("A=").count() == 1, "{done:?}");
}

#[test]
fn a_signal_ends_a_created_container() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.create_container(&bundle);
    container.call("kill", &["0"]).ok();
    container.call("kill", &["WINCH"]).ok();
    assert_eq!(container.status(), "created");
    container.call("kill", &["TERM"]).ok();
    container.await_status("stopped");
    container.call("delete", &[]).ok();
}
