//! Changes of the machine's memory and vCPUs, with a simulated driver of the memory device.

use agent::Seed;

use super::*;
use crate::mem::{BLOCK_SIZE, Mem};
use crate::virtio::testing::{Driver, LoopThread};

/// A guest's driver of the memory device.
struct Guest {
    driver: Driver<Mem>,
    _event_loop: LoopThread,
}

impl Guest {
    fn of(sandbox: &mut TestSandbox) -> Self {
        let event_loop = LoopThread::start();
        let mut driver = Driver::new(Mem::new(sandbox.pluggable.take().unwrap(), event_loop.handle(), None));
        driver.set_up();
        Self { driver, _event_loop: event_loop }
    }

    /// Waits until the device requests `mib` MiB of plugged memory.
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
fn a_memory_request_is_answered_when_the_guest_has_finished() {
    let (mut sandbox, _output) = TestSandbox::running();
    let mut guest = Guest::of(&mut sandbox);
    let mut client = sandbox.connect();
    let id = set_memory(&mut client, 71);
    guest.await_requested(8);
    guest.change(0, 0, 3);
    assert!(matches!(client.receive(Some(Duration::from_millis(50))), Err(ClientError::Timeout(_))));
    guest.change(0, 3, 1);
    assert_eq!(answer(&mut client, id), Ok(Reply::Memory(72)));
    let request = sandbox.answer(Ok(Response::Done));
    assert!(matches!(request, agent::Request::SetPluggedMemory { plugged } if plugged == 8 << 20), "{request:?}");
    let id = set_memory(&mut client, 72);
    assert_eq!(answer(&mut client, id), Ok(Reply::Memory(72)), "the memory has that size already");
    let id = set_memory(&mut client, 1);
    guest.await_requested(0);
    guest.change(1, 0, 4);
    assert_eq!(answer(&mut client, id), Ok(Reply::Memory(64)), "the memory of the boot stays");
}

/// A sandbox that starts from a template with 64 MiB, whose machine is to have 72 MiB, and whose main container was created.
fn growing() -> (TestSandbox, Guest, Output) {
    let mut sandbox = TestSandbox::with(TemplateRole::Started { memory_mib: 72, seed: Seed::new([1; Seed::LENGTH]) });
    let guest = Guest::of(&mut sandbox);
    sandbox.send(&FromAgent::Hello(hello()));
    assert!(matches!(sandbox.answer(Ok(Response::Done)), agent::Request::SeedRandom { .. }));
    sandbox.answer_secret();
    let output = sandbox.create_main();
    guest.await_requested(8);
    (sandbox, guest, output)
}

#[test]
fn a_program_starts_when_the_machine_has_all_of_its_memory() {
    let (mut sandbox, mut guest, _output) = growing();
    let start = sandbox.start_main();
    assert!(matches!(sandbox.client().receive(Some(Duration::from_millis(50))), Err(ClientError::Timeout(_))));
    guest.change(0, 0, 4);
    let request = sandbox.answer(Ok(Response::Done));
    assert!(matches!(request, agent::Request::SetPluggedMemory { plugged } if plugged == 8 << 20), "{request:?}");
    let request = sandbox.answer(Ok(Response::Done));
    assert!(matches!(request, agent::Request::Container(ContainerRequest::Start { .. })), "{request:?}");
    assert_eq!(answer(sandbox.client(), start), Ok(Reply::Done));
}

#[test]
fn a_start_that_waits_for_memory_fails_with_the_guest() {
    let (mut sandbox, _guest, _output) = growing();
    let start = sandbox.start_main();
    assert!(matches!(sandbox.client().receive(Some(Duration::from_millis(50))), Err(ClientError::Timeout(_))));
    sandbox.machine.report(MachineExit::Reset);
    assert_eq!(answer(sandbox.client(), start).unwrap_err().kind, FailureKind::GuestDied);
}

#[test]
fn a_guest_that_unplugs_only_a_part_keeps_the_rest() {
    let (mut sandbox, _output) = TestSandbox::running();
    let mut guest = Guest::of(&mut sandbox);
    let mut client = sandbox.connect();
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
fn a_guest_that_does_not_plug_all_memory_fails_the_request() {
    let (mut sandbox, _output) = TestSandbox::running();
    let mut guest = Guest::of(&mut sandbox);
    let mut client = sandbox.connect();
    let id = set_memory(&mut client, 96);
    guest.await_requested(32);
    guest.change(0, 0, 5);
    let failure = answer(&mut client, id).unwrap_err();
    let text = "give the machine 96 MiB of memory: the guest got to 74 MiB and no further within 10s";
    assert_eq!(failure.to_string(), text);
    guest.await_requested(10);
}

#[test]
fn invalid_memory_requests_fail_at_once() {
    let (sandbox, _output) = TestSandbox::running();
    let mut client = sandbox.connect();
    for mib in [97, u64::MAX] {
        let id = set_memory(&mut client, mib);
        let failure = answer(&mut client, id).unwrap_err().to_string();
        assert!(failure.contains("96 MiB at most"), "{failure}");
    }
    let first = set_memory(&mut client, 80);
    let second = set_memory(&mut client, 90);
    assert!(answer(&mut client, second).unwrap_err().to_string().contains("already"));
    sandbox.machine.report(MachineExit::Reset);
    assert_eq!(answer(&mut client, first).unwrap_err().kind, FailureKind::GuestDied);
}

#[test]
fn a_vcpu_request_is_answered_when_the_guest_uses_the_vcpus() {
    let (mut sandbox, _output) = TestSandbox::running();
    let mut client = sandbox.connect();
    for count in [3, 1, 2] {
        let id = client.send(&Request::SetVcpus { count }, &[]).unwrap();
        let request = sandbox.answer(Ok(Response::Done));
        assert!(
            matches!(request, agent::Request::SetCpus { count: asked } if asked == u32::from(count)),
            "{request:?}"
        );
        assert_eq!(answer(&mut client, id), Ok(Reply::Done));
    }
}

#[test]
fn invalid_vcpu_counts_fail_without_a_request_to_the_guest() {
    let (mut sandbox, _output) = TestSandbox::running();
    let mut client = sandbox.connect();
    for count in [0, 4] {
        let id = client.send(&Request::SetVcpus { count }, &[]).unwrap();
        let failure = answer(&mut client, id).unwrap_err().to_string();
        assert_eq!(failure, format!("have the guest use {count} vCPUs: this machine can have 1 to 3 vCPUs"));
    }
    let id = client.send(&Request::SetVcpus { count: 2 }, &[]).unwrap();
    let refusal = failures::failure(FailureKind::System, "take vCPU 1 online", "it did not answer");
    sandbox.answer(Err(refusal.clone()));
    assert_eq!(answer(&mut client, id), Err(refusal));
}
