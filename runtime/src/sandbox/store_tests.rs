use std::os::unix::fs::symlink;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;
use crate::host::process::boot_id;

fn store() -> (tempfile::TempDir, Store, ContainerId) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("root"));
    (dir, store, "web".parse().unwrap())
}

fn record() -> Record {
    let myself = HostProcess::of(i32::try_from(std::process::id()).unwrap()).unwrap();
    Record {
        id: "web".into(),
        phase: Phase::Running,
        user_namespace: false,
        vmm: myself,
        boot_id: boot_id().unwrap(),
        bundle: "/b".into(),
        rootfs: "/b/rootfs".into(),
        created: "then".into(),
        annotations: HashMap::new(),
        scope: None,
        cgroup: Cgroup::default(),
        machine: Size::NONE,
        resources: None,
        hooks: None,
        network: NetworkRecord::default(),
    }
}

#[test]
fn an_id_is_in_use_from_the_first_write_until_the_removal() {
    let (_guard, store, id) = store();
    let locked = store.claim(&id).unwrap();
    assert!(matches!(store.find(&id), Err(StateError::NotFound)));
    locked.write(&record()).unwrap();
    drop(locked);
    assert!(matches!(store.claim(&id), Err(StateError::Exists)));
    assert_eq!(store.ids().unwrap(), std::slice::from_ref(&id));
    store.lock(&id).unwrap().remove().unwrap();
    assert!(!store.dir(&id).exists());
    assert!(matches!(store.lock(&id), Err(StateError::NotFound)));
    store.claim(&id).unwrap();
}

#[test]
fn the_directory_that_a_killed_create_left_is_reused() {
    let (_guard, store, id) = store();
    drop(store.claim(&id).unwrap());
    store.claim(&id).unwrap();
}

#[test]
fn a_directory_without_state_or_lock_file_can_be_locked_and_removed() {
    let (_guard, store, id) = store();
    assert!(matches!(store.lock_remains(&id), Err(StateError::NotFound)));
    fs::create_dir_all(store.dir(&id)).unwrap();
    assert!(matches!(store.lock(&id), Err(StateError::NotFound)));
    store.lock_remains(&id).unwrap().remove().unwrap();
    assert!(!store.dir(&id).exists());
}

#[test]
fn a_command_that_waits_for_the_lock_gets_not_found_after_a_delete() {
    let (_guard, store, id) = store();
    let locked = store.claim(&id).unwrap();
    locked.write(&record()).unwrap();
    let (sender, receiver) = mpsc::channel();
    let (other, name) = (store.clone(), id.clone());
    let waiter = thread::spawn(move || sender.send(other.lock(&name).map(drop)).unwrap());
    assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err(), "the lock was not waited for");
    locked.remove().unwrap();
    assert!(matches!(receiver.recv().unwrap(), Err(StateError::NotFound)));
    waiter.join().unwrap();
}

#[test]
fn a_container_runs_only_with_a_living_vmm_of_this_boot() {
    let mut record = record();
    assert_eq!(record.phase_now(), Phase::Running);
    record.vmm.start_time += 1;
    assert_eq!(record.phase_now(), Phase::Stopped);
    record.vmm.start_time -= 1;
    record.boot_id = "another".into();
    assert_eq!(record.phase_now(), Phase::Stopped);
}

#[test]
fn a_container_with_a_damaged_state_is_stopped_and_can_be_removed() {
    let (_guard, store, id) = store();
    for text in ["", "{\"id\":\"web\",\"phase\":\"run", "{\"id\":\"other\"}", "\0\0\0"] {
        let locked = store.claim(&id).unwrap();
        fs::write(locked.dir.join(STATE_FILE), text).unwrap();
        assert!(matches!(store.find(&id).unwrap(), StoredState::Damaged), "{text}");
        assert_eq!(store.record(&id).unwrap().phase_now(), Phase::Stopped);
        locked.remove().unwrap();
    }
}

#[test]
fn a_symbolic_link_in_place_of_the_directory_is_refused() {
    let (guard, store, id) = store();
    let elsewhere = guard.path().join("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    fs::create_dir_all(store.dir(&id).parent().unwrap()).unwrap();
    symlink(&elsewhere, store.dir(&id)).unwrap();
    assert!(matches!(store.claim(&id), Err(StateError::Foreign(_))));
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn a_root_that_cannot_be_created_is_an_error_with_its_path() {
    let (guard, _, id) = store();
    let file = guard.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Store::new(file.join("root")).claim(&id).unwrap_err();
    assert!(error.to_string().starts_with("create "), "{error}");
}

#[test]
fn state_that_is_no_regular_file_is_damaged_and_can_be_removed() {
    let (guard, store, id) = store();
    let locked = store.claim(&id).unwrap();
    let state = store.dir(&id).join(STATE_FILE);
    nix::unistd::mkfifo(&state, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(store.find(&id), Ok(StoredState::Damaged)), "a FIFO is read");
    fs::remove_file(&state).unwrap();
    let other = guard.path().join("other");
    fs::write(&other, serde_json::to_vec(&record()).unwrap()).unwrap();
    symlink(&other, &state).unwrap();
    assert!(matches!(store.find(&id), Ok(StoredState::Damaged)), "a link is followed");
    assert_eq!(store.ids().unwrap(), std::slice::from_ref(&id));
    locked.remove().unwrap();
    assert!(other.exists() && !store.dir(&id).exists());
}

#[test]
fn nothing_is_written_or_locked_through_a_link_in_the_directory() {
    let (guard, store, id) = store();
    let locked = store.claim(&id).unwrap();
    let other = guard.path().join("other");
    fs::write(&other, "mine").unwrap();
    symlink(&other, store.dir(&id).join("state.json.new")).unwrap();
    symlink(&other, store.dir(&id).join(SPEC_FILE)).unwrap();
    locked.write(&record()).unwrap();
    locked.write_spec(&Spec::default()).unwrap();
    assert_eq!(fs::read_to_string(&other).unwrap(), "mine");
    assert!(store.spec(&id).is_ok() && matches!(store.find(&id), Ok(StoredState::Record(_))));
    fs::remove_file(store.dir(&id).join(LOCK_FILE)).unwrap();
    nix::unistd::mkfifo(&store.dir(&id).join(LOCK_FILE), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(store.lock(&id).is_err(), "a FIFO is locked");
}
