//! Every state that the credit of a connection reaches, with a guest that keeps to the protocol, and packets on their way in both
//! directions. And any guest that does not.

use std::collections::{HashSet, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// The unit of all amounts. The buffers are few units, so that there are few states.
const UNIT: u32 = BUFFER_SIZE / 4;
const GUEST_BUFFER: u32 = 2 * UNIT;

/// The most packets on their way in one direction.
const ON_THEIR_WAY: usize = 2;

/// A packet: the length of its data, and the sender's `fwd_cnt`.
type OnItsWay = (u32, u32);

/// A connection and its guest.
#[derive(Clone, Debug)]
struct World {
    host: Credit,
    to_host: VecDeque<OnItsWay>,
    to_guest: VecDeque<OnItsWay>,
    guest_sent: Wrapping<u32>,
    /// The host's `fwd_cnt`, as the guest knows it.
    guest_knows: Wrapping<u32>,
    guest_received: Wrapping<u32>,
    guest_read: Wrapping<u32>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    GuestSends(u32),
    GuestUpdates,
    GuestReceives,
    GuestReads(u32),
    HostReceives,
    HostForwards(u32),
    HostSends(u32),
    HostUpdates,
}

const STEPS: [Step; 11] = [
    Step::GuestSends(UNIT),
    Step::GuestSends(BUFFER_SIZE),
    Step::GuestUpdates,
    Step::GuestReceives,
    Step::GuestReads(UNIT),
    Step::GuestReads(BUFFER_SIZE),
    Step::HostReceives,
    Step::HostForwards(UNIT),
    Step::HostForwards(BUFFER_SIZE),
    Step::HostSends(UNIT),
    Step::HostUpdates,
];

impl World {
    /// A connection after `past` bytes in each direction.
    fn new(past: u32) -> Self {
        let past = Wrapping(past);
        let host = Credit {
            received: past,
            forwarded: past,
            advertised: past,
            sent: past,
            guest_forwarded: past,
            guest_buffer: GUEST_BUFFER,
        };
        let (to_host, to_guest) = Default::default();
        Self { host, to_host, to_guest, guest_sent: past, guest_knows: past, guest_received: past, guest_read: past }
    }

    /// Does a step. False if it cannot be done in this state.
    fn run(&mut self, step: Step) -> bool {
        match step {
            Step::GuestSends(most) => {
                let length = most.min(BUFFER_SIZE - (self.guest_sent - self.guest_knows).0);
                length > 0 && self.guest_sends(length)
            }
            Step::GuestUpdates => self.guest_sends(0),
            Step::GuestReceives => self.guest_receives(),
            Step::GuestReads(most) => {
                let count = most.min((self.guest_received - self.guest_read).0);
                self.guest_read += count;
                count > 0
            }
            Step::HostReceives => self.host_receives(),
            Step::HostForwards(most) => {
                let count = most.min((self.host.received - self.host.forwarded).0);
                self.host.forward(count as usize);
                count > 0
            }
            Step::HostSends(most) => {
                let length = most.min(self.host.allowance());
                length > 0 && self.host_sends(length)
            }
            Step::HostUpdates => self.host.is_update_due() && self.host_sends(0),
        }
    }

    fn guest_sends(&mut self, length: u32) -> bool {
        if self.to_host.len() == ON_THEIR_WAY {
            return false;
        }
        self.guest_sent += length;
        self.to_host.push_back((length, self.guest_read.0));
        true
    }

    fn host_receives(&mut self) -> bool {
        let Some((length, forwarded)) = self.to_host.pop_front() else { return false };
        self.host.update(GUEST_BUFFER, forwarded);
        self.host.receive(length).expect("the guest keeps to its credit");
        true
    }

    fn host_sends(&mut self, length: u32) -> bool {
        if self.to_guest.len() == ON_THEIR_WAY {
            return false;
        }
        self.host.send(length);
        let forwarded = self.host.advertise();
        self.to_guest.push_back((length, forwarded));
        true
    }

    fn guest_receives(&mut self) -> bool {
        let Some((length, forwarded)) = self.to_guest.pop_front() else { return false };
        self.guest_received += length;
        self.guest_knows = Wrapping(forwarded);
        true
    }

    /// No side has more than its buffer holds, and no credit is lost.
    fn check(&self) {
        assert!((self.host.received - self.host.forwarded).0 <= BUFFER_SIZE);
        assert!((self.guest_received - self.guest_read).0 <= GUEST_BUFFER);
        assert!(
            (self.host.sent - self.guest_read).0 <= GUEST_BUFFER,
            "more data is on its way than the guest has space for"
        );
        if !self.to_host.is_empty() || !self.to_guest.is_empty() {
            return;
        }
        if self.host.guest_forwarded == self.guest_read && self.guest_read == self.guest_received {
            assert_eq!(self.host.allowance(), GUEST_BUFFER);
        }
        let guest_may_send = BUFFER_SIZE - (self.guest_sent - self.guest_knows).0;
        let is_written = self.host.received == self.host.forwarded;
        assert!(
            !is_written || guest_may_send >= BUFFER_SIZE / 2 || self.host.is_update_due(),
            "the guest waits for ever"
        );
    }

    /// The state without the counters' absolute values. What the code does next depends on nothing else.
    fn differences(&self) -> Vec<u32> {
        let Credit { received, forwarded, advertised, sent, guest_forwarded, guest_buffer: _ } = self.host;
        let from_guest =
            [forwarded, advertised, self.guest_sent, self.guest_knows].map(|counter| (received - counter).0);
        let to_guest = [guest_forwarded, self.guest_received, self.guest_read].map(|counter| (sent - counter).0);
        let to_host = self.to_host.iter().flat_map(|(length, forwarded)| [*length, (sent - Wrapping(*forwarded)).0]);
        let back = self.to_guest.iter().flat_map(|(length, forwarded)| [*length, (received - Wrapping(*forwarded)).0]);
        let lengths = u32::try_from(self.to_host.len()).unwrap();
        from_guest.into_iter().chain(to_guest).chain([lengths]).chain(to_host).chain(back).collect()
    }
}

/// Visits every state that is reached from a connection after `past` bytes. Returns their number.
fn visit(past: u32) -> usize {
    let start = World::new(past);
    let mut seen = HashSet::from([start.differences()]);
    let mut waiting = vec![start];
    while let Some(world) = waiting.pop() {
        for step in STEPS {
            let mut next = world.clone();
            if next.run(step) {
                next.check();
                if seen.insert(next.differences()) {
                    waiting.push(next);
                }
            }
        }
    }
    seen.len()
}

#[test]
fn no_state_exceeds_a_buffer_or_loses_credit() {
    let states = visit(0);
    assert!(states > 1000, "{states} states");
    // The counters wrap after 4 GiB.
    for past in [u32::MAX, u32::MAX - UNIT, u32::MAX - BUFFER_SIZE] {
        assert_eq!(visit(past), states);
    }
}

proptest! {
    /// A guest may claim anything.
    #[test]
    fn any_guest_is_held_to_the_buffer(packets in vec((any::<u32>(), any::<u32>(), 0..=BUFFER_SIZE + 1, any::<u16>(), any::<u16>()), 1..50)) {
        let mut credit = Credit::new(0, 0);
        for (buffer, forwarded, length, sent, written) in packets {
            credit.update(buffer, forwarded);
            let before = (credit.received - credit.forwarded).0;
            prop_assert_eq!(credit.receive(length).is_some(), length <= BUFFER_SIZE - before);
            credit.forward(usize::from(written).min((credit.received - credit.forwarded).0 as usize));
            prop_assert!((credit.received - credit.forwarded).0 <= BUFFER_SIZE);
            prop_assert!(credit.allowance() <= buffer);
            credit.send(credit.allowance().min(sent.into()));
        }
    }
}
