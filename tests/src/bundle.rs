//! Bundles for tests: copies of those `tests/e2e` made, with another `config.json`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{TIMEOUT, eventually};

/// A bundle of one test; gone when dropped.
pub struct Bundle {
    directory: TempDir,
    config: Value,
}

/// Every capability there is.
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

/// Where `tests/e2e` put the bundles that tests start from.
#[must_use]
pub fn templates() -> PathBuf {
    env::var_os("VMRT_TEST_BUNDLES").map_or_else(|| PathBuf::from("/scratch/bundles"), PathBuf::from)
}

impl Bundle {
    /// A busybox with a root file system of its own.
    ///
    /// # Panics
    ///
    /// Like all of this crate, where the test cannot go on.
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

    /// A Debian with python3. All tests share its root file system: what a test writes, it removes.
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

    /// Changes `config.json`: puts a value at a place (a JSON pointer; `-` appends to a list), making objects on the
    /// way where there are none.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        *place(&mut self.config, pointer) = value;
        self.save();
        self
    }

    /// Removes what is at a place of `config.json`.
    #[must_use]
    pub fn without(mut self, pointer: &str) -> Self {
        let (parent, name) = pointer.rsplit_once('/').expect("a JSON pointer");
        self.config.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object").remove(name);
        self.save();
        self
    }

    /// Removes the mount at a place of the container.
    #[must_use]
    pub fn without_mount(mut self, destination: &str) -> Self {
        let mounts = self.config.pointer_mut("/mounts").and_then(Value::as_array_mut).expect("mounts");
        mounts.retain(|mount| mount["destination"] != destination);
        self.save();
        self
    }

    /// A user namespace of its own, whose users and groups the host has from 100000 and from 200000 on, and who have its files.
    ///
    /// # Panics
    /// The files cannot be given to them.
    #[must_use]
    pub fn with_user_namespace(self) -> Self {
        let map = |host| json!([{"containerID": 0, "hostID": host, "size": 65_536}]);
        self.with_mapped_owners()
            .with("/linux/namespaces/-", json!({"type": "user"}))
            .with("/linux/uidMappings", map(100_000))
            .with("/linux/gidMappings", map(200_000))
    }

    /// Its files given to the root of [`Self::with_user_namespace`].
    ///
    /// # Panics
    /// They cannot be.
    #[must_use]
    pub fn with_mapped_owners(self) -> Self {
        let given = Command::new("chown").args(["-R", "100000:200000"]).arg(self.file("")).status();
        assert!(given.expect("chown runs").success(), "the root file system is the mapped root's");
        self
    }

    /// Gives the process every capability.
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

    /// What `docker run --privileged` gives a container: every capability and device, and no path hidden or read-only.
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

    /// Bind-mounts something of the host.
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

    /// A file of the root file system, as the host names it.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        self.path().join("rootfs").join(path)
    }

    /// Waits until the container has made a file.
    ///
    /// # Panics
    ///
    /// Where it does not in time.
    pub fn await_file(&self, path: &str) {
        let there = eventually(TIMEOUT, || self.file(path).exists().then_some(()));
        assert!(there.is_some(), "/{path} did not come");
    }
}

fn place<'a>(config: &'a mut Value, pointer: &str) -> &'a mut Value {
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
        *place(&mut config, "/linux/resources/pids/limit") = json!(5);
        *place(&mut config, "/mounts/-") = json!(2);
        *place(&mut config, "/mounts/0") = json!(0);
        assert_eq!(config, json!({"mounts": [0, 2], "linux": {"resources": {"pids": {"limit": 5}}}}));
    }
}
