//! Memory and vCPUs for the machine, with a driver in the place of the guest's.

use super::*;
use crate::mem::{BLOCK_SIZE, Mem};
use crate::virtio::testing::{Driver, LoopThread};

/// A guest's driver of the memory device.
struct Guest {
    driver: Driver<Mem>,
    _event_loop: LoopThread,
}

impl Guest {
    fn of(bench: &mut Bench) -> Self {
        let event_loop = LoopThread::start();
        let mut driver = Driver::new(Mem::new(bench.pluggable.take().unwrap(), event_loop.handle(), None));
        driver.set_up();
        Self { driver, _event_loop: event_loop }
    }

    /// Waits until it is asked to have so many MiB more than at boot.
    fn await_requested(&self, mib: u32) {
        let deadline = Instant::now() + LONG;
        while self.driver.register(0x130) != mib << 20 {
            assert!(Instant::now() < deadline, "{:#x} bytes are requested", self.driver.register(0x130));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Plugs or unplugs blocks.
    fn change(&mut self, kind: u8, block: u64, count: u8) {
        let mut request = [0; 24];
        request[0] = kind;
        request[8..16].copy_from_slice(&((4 << 30) + block * BLOCK_SIZE).to_le_bytes());
        request[16] = count;
        assert_eq!(self.driver.request(0, &[&request], &[10])[..2], [0, 0], "it is acknowledged");
    }
}

fn set_memory(client: &mut Client, mib: u64) -> u64 {
    client.send(&Request::SetMemory { mib }, &[]).unwrap()
}

fn answer(client: &mut Client, id: u64) -> Result<Reply, Failure> {
    let answer = client.receive(Some(LONG)).unwrap();
    assert_eq!(answer.id, id);
    answer.result
}

#[test]
fn who_asks_for_memory_is_answered_when_the_guest_has_it() {
    let (mut bench, _output) = Bench::running();
    let mut guest = Guest::of(&mut bench);
    let mut client = bench.connect();
    let id = set_memory(&mut client, 71);
    guest.await_requested(8);
    guest.change(0, 0, 3);
    assert!(matches!(client.receive(Some(Duration::from_millis(50))), Err(ClientError::Timeout(_))));
    guest.change(0, 3, 1);
    assert_eq!(answer(&mut client, id), Ok(Reply::Memory(72)));
    let told = bench.answer(Ok(Response::Done));
    assert!(matches!(told, agent::Request::FollowMemory { plugged } if plugged == 8 << 20), "{told:?}");
    let id = set_memory(&mut client, 72);
    assert_eq!(answer(&mut client, id), Ok(Reply::Memory(72)), "there is nothing to do");
    let id = set_memory(&mut client, 1);
    guest.await_requested(0);
    guest.change(1, 0, 4);
    assert_eq!(answer(&mut client, id), Ok(Reply::Memory(64)), "what it booted with stays");
}

#[test]
fn a_guest_that_does_not_give_all_back_keeps_what_it_has() {
    let (mut bench, _output) = Bench::running();
    let mut guest = Guest::of(&mut bench);
    let mut client = bench.connect();
    let id = set_memory(&mut client, 72);
    guest.await_requested(8);
    guest.change(0, 0, 4);
    assert_eq!(answer(&mut client, id), Ok(Reply::Memory(72)));
    let id = set_memory(&mut client, 64);
    guest.await_requested(0);
    guest.change(1, 1, 1);
    assert_eq!(answer(&mut client, id), Ok(Reply::Memory(70)));
    guest.await_requested(6);
}

#[test]
fn a_guest_that_does_not_take_memory_is_a_failure_that_names_what_it_has() {
    let (mut bench, _output) = Bench::running();
    let mut guest = Guest::of(&mut bench);
    let mut client = bench.connect();
    let id = set_memory(&mut client, 96);
    guest.await_requested(32);
    guest.change(0, 0, 5);
    let failure = answer(&mut client, id).unwrap_err();
    let text = "give the machine 96 MiB of memory: the guest got to 74 MiB and no further within 10s";
    assert_eq!(failure.to_string(), text);
    guest.await_requested(10);
}

#[test]
fn what_cannot_be_is_refused_at_once() {
    let (bench, _output) = Bench::running();
    let mut client = bench.connect();
    for mib in [97, u64::MAX] {
        let id = set_memory(&mut client, mib);
        let failure = answer(&mut client, id).unwrap_err().to_string();
        assert!(failure.contains("96 MiB at most"), "{failure}");
    }
    let first = set_memory(&mut client, 80);
    let second = set_memory(&mut client, 90);
    assert!(answer(&mut client, second).unwrap_err().to_string().contains("already"));
    bench.machine.tell(MachineExit::Reset);
    assert_eq!(answer(&mut client, first).unwrap_err().kind, FailureKind::GuestDied);
}

#[test]
fn who_asks_for_vcpus_is_answered_when_the_guest_uses_them() {
    let (mut bench, _output) = Bench::running();
    let mut client = bench.connect();
    for count in [3, 1, 2] {
        let id = client.send(&Request::SetVcpus { count }, &[]).unwrap();
        let asked = bench.answer(Ok(Response::Done));
        assert!(matches!(asked, agent::Request::SetCpus { count: told } if told == u32::from(count)), "{asked:?}");
        assert_eq!(answer(&mut client, id), Ok(Reply::Done));
    }
}

#[test]
fn vcpus_that_cannot_be_are_refused_without_asking_the_guest() {
    let (mut bench, _output) = Bench::running();
    let mut client = bench.connect();
    for count in [0, 4] {
        let id = client.send(&Request::SetVcpus { count }, &[]).unwrap();
        let failure = answer(&mut client, id).unwrap_err().to_string();
        assert_eq!(failure, format!("have the guest use {count} vCPUs: this machine can have 1 to 3 vCPUs"));
    }
    let id = client.send(&Request::SetVcpus { count: 2 }, &[]).unwrap();
    let refusal = failure(FailureKind::System, "take vCPU 1 online", "it did not answer");
    bench.answer(Err(refusal.clone()));
    assert_eq!(answer(&mut client, id), Err(refusal));
}
