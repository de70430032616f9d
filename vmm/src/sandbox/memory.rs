//! Who waits for memory to run out in a container.

use std::collections::BTreeMap;

use super::clients::Caller;

/// How often memory has run out in each container, and who wants to hear of the next time.
#[derive(Debug, Default)]
pub(super) struct OutOfMemory {
    counts: BTreeMap<String, u64>,
    waiters: Vec<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    container: String,
    known: u64,
    caller: Caller,
}

impl OutOfMemory {
    /// Notes that it happened: who waits for it, and the number to tell.
    pub(super) fn happened(&mut self, container: &str) -> (Vec<Caller>, u64) {
        let count = self.counts.entry(container.to_owned()).or_default();
        *count += 1;
        let count = *count;
        let due = self.waiters.extract_if(.., |waiter| waiter.container == container && waiter.known < count);
        (due.map(|waiter| waiter.caller).collect(), count)
    }

    /// Waits until it has happened more often than the caller knows: the number, where that can be told already.
    pub(super) fn wait(&mut self, container: String, known: Option<u64>, caller: Caller) -> Option<u64> {
        let count = self.counts.get(&container).copied().unwrap_or_default();
        match known {
            Some(known) if known >= count => {
                self.waiters.push(Waiter { container, known, caller });
                None
            }
            _ => Some(count),
        }
    }

    /// The container is forgotten: whoever waited.
    pub(super) fn remove(&mut self, container: &str) -> Vec<Caller> {
        self.counts.remove(container);
        self.waiters.extract_if(.., |waiter| waiter.container == container).map(|waiter| waiter.caller).collect()
    }

    /// A client left.
    pub(super) fn forget_client(&mut self, client: u32) {
        self.waiters.retain(|waiter| waiter.caller.client != client);
    }

    /// Everybody who will never hear of it.
    pub(super) fn abandon(&mut self) -> Vec<Caller> {
        self.waiters.drain(..).map(|waiter| waiter.caller).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: Caller = Caller { client: 20, id: 1 };

    #[test]
    fn each_time_is_told_once_to_who_does_not_know() {
        let mut memory = OutOfMemory::default();
        assert_eq!(memory.wait("c".into(), None, CALLER), Some(0));
        assert_eq!(memory.wait("c".into(), Some(0), CALLER), None);
        assert_eq!(memory.happened("other"), (vec![], 1));
        assert_eq!(memory.happened("c"), (vec![CALLER], 1));
        assert_eq!(memory.happened("c"), (vec![], 2));
        assert_eq!(memory.wait("c".into(), Some(1), CALLER), Some(2), "what was missed is told at once");
        assert_eq!(memory.wait("c".into(), Some(2), CALLER), None);
        assert_eq!(memory.remove("c"), [CALLER]);
    }

    #[test]
    fn who_left_is_not_told() {
        let mut memory = OutOfMemory::default();
        memory.wait("c".into(), Some(0), CALLER);
        memory.forget_client(CALLER.client);
        assert_eq!(memory.happened("c").0, []);
    }
}
