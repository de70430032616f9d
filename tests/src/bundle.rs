//! Bundles for tests: copies of the bundles that `tests/e2e` makes, with another `config.json`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{TIMEOUT, eventually};

/// A bundle of one test; removed when dropped.
pub struct Bundle {
    directory: TempDir,
    config: Value,
}

/// All capabilities.
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// The directory where `tests/e2e` puts the bundles that tests copy.
#[must_use]
pub fn templates() -> PathBuf {
    env::var_os("VMRT_TEST_BUNDLES").map_or_else(|| PathBuf::from("/scratch/bundles"), PathBuf::from)
}

impl Bundle {
    /// A busybox with a root file system of its own.
    ///
    /// # Panics
    ///
    /// Panics, like all functions of this crate, if the test cannot continue.
    #[must_use]
    pub fn busybox<'a>(args: impl IntoIterator<Item = &'a str>) -> Self {
        let directory = tempfile::tempdir().expect("a directory for a bundle");
        let template = templates().join("busybox");
        let copied = Command::new("cp").arg("-a").arg(template.join("rootfs")).arg(directory.path()).status();
        assert!(copied.expect("cp runs").success(), "the busybox bundle was copied");
        Self::new(directory, &template, Path::new("rootfs"), args)
    }

    /// A busybox that runs a shell script.
    #[must_use]
    pub fn script(script: &str) -> Self {
        Self::busybox(["sh", "-c", script])
    }

    /// A Debian with python3. All tests share its root file system: each test removes what it writes.
    #[must_use]
    pub fn debian<'a>(args: impl IntoIterator<Item = &'a str>) -> Self {
        let directory = tempfile::tempdir().expect("a directory for a bundle");
        Self::new(directory, &templates().join("busybox"), &templates().join("debian"), args)
    }

    fn new<'a>(directory: TempDir, template: &Path, root: &Path, args: impl IntoIterator<Item = &'a str>) -> Self {
        let config = fs::read(template.join("config.json")).expect("the template's config.json");
        let config = serde_json::from_slice(&config).expect("the template's config.json is JSON");
        let args: Vec<_> = args.into_iter().collect();
        Self { directory, config }.with("/root/path", json!(root)).with("/process/args", json!(args))
    }

    /// Changes `config.json`: sets the value at a JSON pointer, and creates missing objects. `-` appends to a list.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        *value_at(&mut self.config, pointer) = value;
        self.save();
        self
    }

    /// Removes the value at a JSON pointer of `config.json`.
    #[must_use]
    pub fn without(mut self, pointer: &str) -> Self {
        let (parent, name) = pointer.rsplit_once('/').expect("a JSON pointer");
        self.config.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object").remove(name);
        self.save();
        self
    }

    /// Removes the mount with this destination.
    #[must_use]
    pub fn without_mount(mut self, destination: &str) -> Self {
        let mounts = self.config.pointer_mut("/mounts").and_then(Value::as_array_mut).expect("mounts");
        mounts.retain(|mount| mount["destination"] != destination);
        self.save();
        self
    }

    /// Adds a user namespace. Its users start at 100000 on the host and its groups at 200000; its root owns the bundle's files.
    ///
    /// # Panics
    /// The owners cannot be changed.
    #[must_use]
    pub fn with_user_namespace(self) -> Self {
        let map = |host| json!([{"containerID": 0, "hostID": host, "size": 65_536}]);
        self.with_mapped_owners()
            .with("/linux/namespaces/-", json!({"type": "user"}))
            .with("/linux/uidMappings", map(100_000))
            .with("/linux/gidMappings", map(200_000))
    }

    /// Makes the root of [`Self::with_user_namespace`] the owner of the bundle's files.
    ///
    /// # Panics
    /// The owners cannot be changed.
    #[must_use]
    pub fn with_mapped_owners(self) -> Self {
        let given = Command::new("chown").args(["-R", "100000:200000"]).arg(self.file("")).status();
        assert!(given.expect("chown runs").success(), "the root file system is the mapped root's");
        self
    }

    /// Gives the process the capabilities that most tests need.
    #[must_use]
    pub fn with_capabilities(self) -> Self {
        let every: Vec<_> = [
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "KILL",
            "MKNOD",
            "NET_ADMIN",
            "NET_RAW",
            "SETGID",
            "SETUID",
            "SYS_ADMIN",
            "SYS_RESOURCE",
        ]
        .iter()
        .map(|name| format!("CAP_{name}"))
        .collect();
        let sets = ["bounding", "effective", "permitted"].map(|set| (set.to_string(), json!(every)));
        self.with("/process/capabilities", Value::Object(sets.into_iter().collect()))
    }

    /// Configures what `docker run --privileged` does: every capability and device, and no hidden or read-only paths.
    #[must_use]
    pub fn privileged(self) -> Self {
        let every: Vec<_> = CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect();
        let sets = ["bounding", "effective", "permitted"].map(|set| (set.to_string(), json!(every)));
        let writable = ["nosuid", "noexec", "nodev", "rw"];
        self.with("/process/capabilities", Value::Object(sets.into_iter().collect()))
            .with("/process/noNewPrivileges", json!(false))
            .with("/linux/resources/devices", json!([{"allow": true, "access": "rwm"}]))
            .with("/linux/maskedPaths", json!([]))
            .with("/linux/readonlyPaths", json!([]))
            .without_mount("/sys")
            .without_mount("/sys/fs/cgroup")
            .with("/mounts/-", json!({"type": "sysfs", "source": "sysfs", "destination": "/sys", "options": writable}))
            .with(
                "/mounts/-",
                json!({"type": "cgroup", "source": "cgroup", "destination": "/sys/fs/cgroup", "options": writable}),
            )
    }

    /// Adds a bind mount of a path of the host.
    #[must_use]
    pub fn bind(self, source: &Path, destination: &str, options: &[&str]) -> Self {
        let options: Vec<_> = ["bind"].iter().chain(options).collect();
        let mount = json!({"type": "bind", "source": source, "destination": destination, "options": options});
        self.with("/mounts/-", mount)
    }

    fn save(&self) {
        fs::write(self.path().join("config.json"), self.config.to_string()).expect("config.json was written");
    }

    /// The bundle's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The host's path of a file in the root file system.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        self.path().join("rootfs").join(path)
    }

    /// Waits until the container has made a file.
    ///
    /// # Panics
    ///
    /// Panics if it does not make it in time.
    pub fn await_file(&self, path: &str) {
        let there = eventually(TIMEOUT, || self.file(path).exists().then_some(()));
        assert!(there.is_some(), "/{path} did not come");
    }
}

/// The value at a JSON pointer. Missing objects are created; `-` appends to a list.
fn value_at<'a>(config: &'a mut Value, pointer: &str) -> &'a mut Value {
    pointer.split('/').skip(1).fold(config, |value, name| {
        if value.is_array() {
            let list = value.as_array_mut().expect("a list");
            let index = name.parse().unwrap_or(list.len());
            list.extend((index == list.len()).then_some(Value::Null));
            return &mut list[index];
        }
        if !value.is_object() {
            *value = json!({});
        }
        &mut value[name]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_members_of_a_json_pointer_are_created() {
        let mut config = json!({"mounts": [1]});
        *value_at(&mut config, "/linux/resources/pids/limit") = json!(5);
        *value_at(&mut config, "/mounts/-") = json!(2);
        *value_at(&mut config, "/mounts/0") = json!(0);
        assert_eq!(config, json!({"mounts": [0, 2], "linux": {"resources": {"pids": {"limit": 5}}}}));
    }
}
