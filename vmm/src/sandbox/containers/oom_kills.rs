//! OOM kills in containers, and the clients that wait for the next one.

use std::collections::BTreeMap;

use crate::sandbox::clients::Caller;

/// Number of OOM kills of each container, and the callers that wait for more of them.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct OomKills {
    counts: BTreeMap<String, u64>,
    waiters: Vec<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    container: String,
    /// The number of OOM kills that the caller knows of.
    known: u64,
    caller: Caller,
}

impl OomKills {
    /// Counts an OOM kill. Returns the callers to answer and the new number.
    pub(in crate::sandbox) fn record(&mut self, container: &str) -> (Vec<Caller>, u64) {
        let count = self.counts.entry(container.to_owned()).or_default();
        *count += 1;
        let count = *count;
        let due = self.waiters.extract_if(.., |waiter| waiter.container == container && waiter.known < count);
        (due.map(|waiter| waiter.caller).collect(), count)
    }

    /// Waits until there are more OOM kills than the caller knows of. Returns their number if that is already so, or if the
    /// caller knows none.
    pub(in crate::sandbox) fn wait(&mut self, container: String, known: Option<u64>, caller: Caller) -> Option<u64> {
        let count = self.counts.get(&container).copied().unwrap_or_default();
        match known {
            Some(known) if known >= count => {
                self.waiters.push(Waiter { container, known, caller });
                None
            }
            _ => Some(count),
        }
    }

    /// Removes a container. Returns the callers that waited for its OOM kills.
    pub(in crate::sandbox) fn remove_container(&mut self, container: &str) -> Vec<Caller> {
        self.counts.remove(container);
        self.waiters.extract_if(.., |waiter| waiter.container == container).map(|waiter| waiter.caller).collect()
    }

    /// Removes the waiters of a client that disconnected.
    pub(in crate::sandbox) fn remove_client(&mut self, client: u32) {
        self.waiters.retain(|waiter| waiter.caller.client != client);
    }

    /// Removes and returns all waiting callers.
    pub(in crate::sandbox) fn take_waiters(&mut self) -> Vec<Caller> {
        self.waiters.drain(..).map(|waiter| waiter.caller).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: Caller = Caller { client: 20, id: 1 };

    #[test]
    fn a_caller_is_answered_once_for_each_oom_kill_it_does_not_know() {
        let mut oom_kills = OomKills::default();
        assert_eq!(oom_kills.wait("c".into(), None, CALLER), Some(0));
        assert_eq!(oom_kills.wait("c".into(), Some(0), CALLER), None);
        assert_eq!(oom_kills.record("other"), (vec![], 1));
        assert_eq!(oom_kills.record("c"), (vec![CALLER], 1));
        assert_eq!(oom_kills.record("c"), (vec![], 2));
        assert_eq!(oom_kills.wait("c".into(), Some(1), CALLER), Some(2), "a missed OOM kill is reported at once");
        assert_eq!(oom_kills.wait("c".into(), Some(2), CALLER), None);
        assert_eq!(oom_kills.remove_container("c"), [CALLER]);
    }

    #[test]
    fn a_disconnected_client_is_not_answered() {
        let mut oom_kills = OomKills::default();
        oom_kills.wait("c".into(), Some(0), CALLER);
        oom_kills.remove_client(CALLER.client);
        assert_eq!(oom_kills.record("c").0, []);
    }
}
