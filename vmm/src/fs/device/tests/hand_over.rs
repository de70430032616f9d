//! Every hand-over of queues between the transport and the file server's threads, for short sequences of requests: the device is reset or
//! saved when a queue thread has used any number of the chains, and while the pool has others.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::*;
use crate::virtio::mmio::Registers;
use crate::virtio::registers::register;
use crate::virtio::state::TransportState;

/// The queue of the requests. The queue thread that serves it also serves the high priority queue.
const QUEUE: usize = 1;

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The queue thread replies.
    Fast,
    /// The pool replies.
    Slow,
    /// A buffer is outside of guest memory.
    Malformed,
}

const KINDS: [Kind; 3] = [Kind::Fast, Kind::Slow, Kind::Malformed];
const LENGTH: usize = 3;

#[derive(Clone, Copy, Debug)]
enum End {
    Reset,
    Save,
}

struct Machine {
    driver: Driver<FsDevice>,
    shares: SharesHandle,
    /// Set while a thread takes the queues from the device.
    is_stopping: Arc<AtomicBool>,
    share: u64,
    directory: u64,
}

fn device(shares: &SharesHandle, state: Option<FsState>) -> (FsDevice, Arc<AtomicBool>) {
    let device = FsDevice::new("vmrt", server(shares.clone()), 2, state).unwrap();
    let is_stopping = Arc::clone(&device.stop.is_set);
    (device, is_stopping)
}

/// Waits for another thread.
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

impl Machine {
    fn new(shares: SharesHandle) -> Self {
        let (device, is_stopping) = device(&shares, None);
        Self { driver: Driver::new(device), shares, is_stopping, share: 0, directory: 0 }
    }

    /// From a reset to an open directory.
    fn set_up(&mut self) {
        self.driver.reset();
        self.driver.set_up();
        init(&mut self.driver);
        let node = |reply: (OutHeader, Vec<u8>)| EntryOut::read_from_prefix(&reply.1).unwrap().0.nodeid;
        let container = node(call(&mut self.driver, op::LOOKUP, ROOT_ID, b"c\0"));
        self.share = node(call(&mut self.driver, op::LOOKUP, container, b"share\0"));
        let open = call(&mut self.driver, op::OPENDIR, self.share, &[0; 8]).1;
        self.directory = OpenOut::read_from_prefix(&open).unwrap().0.fh;
        // The thread has used this chain after the interrupts of those before.
        self.driver.interrupt_after(QUEUE, u16::MAX / 2);
        self.add(Kind::Fast);
        self.driver.notify(QUEUE);
        wait_until("a chain is not used", || self.driver.used_count(QUEUE) == 1);
        self.driver.take_used(QUEUE);
    }

    /// Adds a chain and returns its head.
    fn add(&mut self, kind: Kind) -> u16 {
        let sync = FsyncIn { fh: self.directory, ..FsyncIn::default() };
        let (opcode, node, body) = match kind {
            Kind::Slow => (op::FSYNCDIR, self.share, sync.as_bytes()),
            Kind::Fast | Kind::Malformed => (op::LOOKUP, ROOT_ID, &b"c\0"[..]),
        };
        let head = self.driver.make_available(QUEUE, &[header(opcode, node, body.len()).as_bytes(), body], &[16, 256]);
        if matches!(kind, Kind::Malformed) {
            self.driver.move_buffer(QUEUE, head, 3, UNPLUGGED);
        }
        head
    }

    /// Takes the used chains and checks their replies.
    fn take_used(&mut self, added: &[(u16, Kind)]) -> Vec<u16> {
        let mut heads = Vec::new();
        while let Some(used) = self.driver.take_used(QUEUE) {
            let (_, kind) = added.iter().find(|(head, _)| *head == used.head).expect("an added chain");
            match kind {
                Kind::Malformed => assert!(used.data.is_empty()),
                Kind::Fast | Kind::Slow => {
                    let (out, _) = OutHeader::read_from_prefix(&used.data).unwrap();
                    assert_eq!((out.error, out.unique, out.len as usize), (0, 7, used.data.len()));
                }
            }
            heads.push(used.head);
        }
        heads
    }

    /// Has the device return its queues, and lets a held queue thread continue only when it has been told to return them.
    fn stop<T: Send>(&self, is_held: bool, stop: impl FnOnce(&Driver<FsDevice>) -> T + Send) -> T {
        std::thread::scope(|scope| {
            let stopper = scope.spawn(|| stop(&self.driver));
            if is_held {
                wait_until("the device is not stopped", || self.is_stopping.load(Ordering::SeqCst));
            }
            self.driver.release();
            stopper.join().unwrap()
        })
    }

    /// Adds chains of these kinds and stops the device when it has used `hold` + 1 of them, or at any time if `hold` is `None`. No chain
    /// that was taken is lost, and no chain is used twice.
    fn run(mut self, kinds: [Kind; LENGTH], hold: Option<usize>, end: End) -> Self {
        self.set_up();
        let count = u16::try_from(hold.unwrap_or(LENGTH)).unwrap();
        self.driver.hold();
        self.driver.interrupt_after(QUEUE, count);
        let added = kinds.map(|kind| (self.add(kind), kind));
        self.driver.notify(QUEUE);
        let is_held = hold.is_some_and(|hold| hold < LENGTH);
        if hold.is_some() {
            wait_until("chains are not used", || self.driver.used_count(QUEUE) == count + u16::from(is_held));
        }
        let used = match end {
            End::Reset => {
                self.stop(is_held, |driver| driver.transport.write(register::STATUS, &[0; 4]));
                self.take_used(&added)
            }
            End::Save => {
                self = self.save_and_restore(is_held);
                wait_until("the restored device loses chains", || usize::from(self.driver.used_count(QUEUE)) >= LENGTH);
                self.take_used(&added)
            }
        };
        check(&added, hold, end, used);
        self
    }

    fn save_and_restore(self, is_held: bool) -> Self {
        let saved = self.stop(is_held, |driver| serde_json::to_string(&driver.transport.save()).unwrap());
        let fields: serde_json::Value = serde_json::from_str(&saved).unwrap();
        let queues = fields["queues"].as_array().unwrap();
        assert_eq!(queues.len(), 3);
        let is_used_up = |queue: &serde_json::Value| queue["next_avail"] == queue["next_used"];
        assert!(queues.iter().all(is_used_up), "a chain was taken and not used");
        let state: TransportState<FsState> = serde_json::from_str(&saved).unwrap();
        let fs_state = serde_json::from_value(fields["device"].clone()).unwrap();
        let (device, is_stopping) = device(&self.shares, Some(fs_state));
        Self { driver: self.driver.restored(device, &state), is_stopping, ..self }
    }
}

/// The chains that were used are the first ones that were added.
fn check(added: &[(u16, Kind); LENGTH], hold: Option<usize>, end: End, mut used: Vec<u16>) {
    used.sort_unstable();
    let expected: Vec<u16> = added.iter().map(|(head, _)| *head).take(used.len()).collect();
    assert_eq!(used, expected);
    let are_in_order = added.iter().all(|(_, kind)| !matches!(kind, Kind::Slow));
    match (end, hold) {
        (End::Save, _) => assert_eq!(used.len(), LENGTH),
        // The thread was in its use of the last of these chains when it was told to stop.
        (End::Reset, Some(hold)) if are_in_order => assert_eq!(used.len(), LENGTH.min(hold + 1)),
        (End::Reset, Some(hold)) => assert!(used.len() >= LENGTH.min(hold + 1)),
        (End::Reset, None) => {}
    }
}

#[test]
fn no_chain_is_lost_or_used_twice_wherever_the_device_is_stopped() {
    let (_directory, shares) = shares();
    let mut machine = Machine::new(shares);
    for number in 0..KINDS.len().pow(3) {
        let kinds = [number % 3, number / 3 % 3, number / 9].map(|kind| KINDS[kind]);
        for hold in (0..=LENGTH).map(Some).chain([None]) {
            for end in [End::Reset, End::Save] {
                println!("{kinds:?}, {hold:?}, {end:?}");
                machine = machine.run(kinds, hold, end);
            }
        }
    }
}

/// After each chain, the thread looks at the queue once more: for the second notification, or because it is about to enable them. The next
/// chain comes at that time.
#[test]
fn a_chain_that_is_added_while_the_queue_is_found_empty_is_used() {
    let (_directory, shares) = shares();
    let mut machine = Machine::new(shares);
    for _ in 0..5 {
        machine.set_up();
        for _ in 0..2000 {
            machine.add(Kind::Fast);
            machine.driver.notify(QUEUE);
            wait_until("the chain is not used", || machine.driver.used_count(QUEUE) == 1);
            machine.driver.notify(QUEUE);
            machine.driver.take_used(QUEUE);
        }
    }
}
