//! Workloads: engines, image builders, builds, package managers and databases, in one privileged container of
//! a Debian, as `docker run --privileged` makes it; and systemd in a separate container.

mod machine;
mod systemd;

use std::iter;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use vmrt_tests::bundle::templates;
use vmrt_tests::runtime::{RunningCommand, program};

use crate::machine::{Machine, script};

/// The name of a test in the shared container, and the test.
type Test = (&'static str, fn(&Machine));

const TESTS: [Test; 9] = [
    ("a_repository_is_cloned_and_built", a_repository_is_cloned_and_built),
    ("buildah_builds_and_podman_runs", buildah_builds_and_podman_runs),
    ("docker_runs_with_overlay2_on_a_volume", docker_runs_with_overlay2_on_a_volume),
    ("docker_runs_with_vfs_on_the_root_file_system", docker_runs_with_vfs_on_the_root_file_system),
    ("packages_are_installed", packages_are_installed),
    ("pip_installs_a_wheel", pip_installs_a_wheel),
    ("postgres_recovers_what_it_committed", postgres_recovers_what_it_committed),
    ("redis_recovers_what_it_appended", redis_recovers_what_it_appended),
    ("root_file_systems_are_unpacked", root_file_systems_are_unpacked),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = TESTS.into_iter().map(|(name, test)| {
        Trial::test(format!("workloads::{name}"), move || {
            test(Machine::get());
            Ok(())
        })
    });
    // First, because the other container does not use CPU time yet.
    let systemd = Trial::test("workloads::systemd_reaches_running", || {
        systemd_reaches_running();
        Ok(())
    });
    let conclusion = libtest_mimic::run(&arguments, iter::once(systemd).chain(trials).collect());
    Machine::stop();
    if conclusion.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn a_repository_is_cloned_and_built(machine: &Machine) {
    let done = machine.bash(script!("build.sh"), &[]);
    // Five, or three, times the sum of 1 to 32. One source is newer, so make runs two commands again.
    done.ok().assert_values(&[("sum", "2640"), ("again", "2"), ("before", "1584"), ("changes", "")]);
}

fn buildah_builds_and_podman_runs(machine: &Machine) {
    let done = machine.bash(script!("buildah.sh"), &[]);
    let printed = "640:12:34 words /bin/moved";
    done.ok().assert_values(&[("layers", "1"), ("crun", printed), ("runc", printed)]);
}

fn docker(machine: &Machine, driver: &str, root: &str) {
    let done = machine.bash(script!("docker.sh"), &[driver, root]);
    let pages = [("published", "page more"), ("between", "page more")];
    done.ok().assert_values(&[&[("driver", driver), ("alone", "in new"), ("left", "")], &pages[..]].concat());
}

fn docker_runs_with_overlay2_on_a_volume(machine: &Machine) {
    docker(machine, "overlay2", "/volume/docker");
}

fn docker_runs_with_vfs_on_the_root_file_system(machine: &Machine) {
    docker(machine, "vfs", "/var/lib/docker");
}

fn packages_are_installed(machine: &Machine) {
    let done = machine.bash(script!("packages.sh"), &[]);
    let [installed, scripts] = ["first:ii ;second:ii ;", "configure configure remove remove"];
    done.ok().assert_values(&[
        ("installed", installed),
        ("files", "0 100 setting"),
        ("scripts", scripts),
        ("left", ""),
    ]);
}

fn pip_installs_a_wheel(machine: &Machine) {
    let done = machine.bash(script!("pip.sh"), &[]);
    done.ok().assert_values(&[("said", "greetings"), ("version", "1.0"), ("left", "")]);
}

fn postgres_recovers_what_it_committed(machine: &Machine) {
    let done = machine.bash(script!("postgres.sh"), &[]);
    done.ok().assert_values(&[("recovered", "1"), ("missing", "0"), ("last", "last")]);
}

fn redis_recovers_what_it_appended(machine: &Machine) {
    let done = machine.bash(script!("redis.sh"), &[]);
    done.ok().assert_values(&[("missing", "0"), ("value", "0")]);
}

/// Runs a script on the host in the Debian's root file system.
fn on_the_host(script: &str, argument: &str) -> String {
    let mut command = Command::new("unshare");
    let enter = r#"mount --bind /proc "$0/proc" && exec chroot "$0" bash -c "$@""#;
    command.args(["--mount", "sh", "-c", enter]).arg(templates().join("debian")).args([script, "bash", argument]);
    RunningCommand::start(&mut command, None).end().ok().text()
}

fn root_file_systems_are_unpacked(machine: &Machine) {
    on_the_host(script!("root-files.sh"), "/srv/packed");
    let packed = on_the_host(script!("list.sh"), "/srv/packed");
    let tar = "tar --xattrs --xattrs-include='*' --numeric-owner";
    on_the_host(&format!("{tar} --create --sparse --file /srv/packed.tar --directory $1 ."), "/srv/packed");
    let unpack = format!("mkdir /srv/unpacked && {tar} --extract --file /srv/packed.tar --directory /srv/unpacked");
    machine.bash(&unpack, &[]).ok();
    let seen = machine.bash(script!("list.sh"), &["/srv/unpacked"]).ok().text();
    assert_eq!(seen, packed, "in the machine");
    // The guest's `trusted.*` has another name on the host: docs/virtio-fs.md.
    let on_host = on_the_host(script!("list.sh"), "/srv/unpacked").replace("user.vmrt.trusted.", "trusted.");
    assert_eq!(on_host, packed, "on the host");
    on_the_host("rm -r $1*", "/srv/");
}

/// The longest time of systemd, as a multiple of its time with runc. It is asserted only on hardware: on a software CPU, an
/// exit from the guest takes many times as long as a system call, so the test only prints the figure.
const LONGEST_SYSTEMD: f64 = 2.0;

fn systemd_reaches_running() {
    let [runc, ours] = ["runc", &program()].map(|program| {
        let boot = systemd::boot(program);
        assert_eq!((&*boot.state, &*boot.failed), ("running", ""), "{program}");
        boot.duration.as_secs_f64()
    });
    eprintln!("systemd runs after {runc:.1} s with runc, after {ours:.1} s with {}", program());
    assert!(!vmrt_tests::is_hardware() || ours <= LONGEST_SYSTEMD * runc);
}
