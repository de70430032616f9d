//! Everybody who is connected to the control socket.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use agent::Failure;
use event_manager::{EventOps, EventSet, Events};

use crate::control::{Answer, Connection, ConnectionError, Reply, Request};

/// Most clients at a time. Each command of the runtime is one.
const MAX_CLIENTS: usize = 1024;

/// Requests of one client that may be without an answer.
const MAX_UNANSWERED: usize = 1024;

/// Tokens below are not clients.
pub(super) const FIRST_TOKEN: u32 = 16;

/// A request that has to be answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Caller {
    pub(super) client: u32,
    pub(super) id: u64,
}

#[derive(Debug)]
struct Entry {
    connection: Connection,
    unanswered: usize,
    interest: EventSet,
    gone: bool,
}

/// The clients, by the token of their events.
#[derive(Debug)]
pub(super) struct Clients {
    entries: BTreeMap<u32, Entry>,
    next_token: u32,
    /// Given up for a moment when there is no other descriptor left, to refuse a client that would wait for ever.
    spare: Option<OwnedFd>,
}

impl Clients {
    /// The client that was inherited, and nobody else. Its token is [`FIRST_TOKEN`].
    pub(super) fn new(inherited: Connection, listener: &UnixListener) -> Self {
        let spare = listener.as_fd().try_clone_to_owned().ok();
        let mut clients = Self { entries: BTreeMap::new(), next_token: FIRST_TOKEN, spare };
        clients.add(inherited);
        clients
    }

    /// Takes those who want to connect.
    pub(super) fn accept(&mut self, listener: &UnixListener) -> io::Result<()> {
        loop {
            match listener.accept() {
                Ok((stream, _)) if self.entries.len() < MAX_CLIENTS => self.add(Connection::new(stream)),
                Ok((_, _)) => tracing::warn!("more than {MAX_CLIENTS} control connections: one was refused"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.refuse(listener);
                    return Err(error);
                }
            }
        }
    }

    /// Takes one client off the listener's queue without keeping it.
    fn refuse(&mut self, listener: &UnixListener) {
        self.spare = None;
        drop(listener.accept());
        self.spare = listener.as_fd().try_clone_to_owned().ok();
    }

    /// A client's next request.
    pub(super) fn next(&mut self, token: u32) -> Option<(Caller, Request)> {
        let entry = self.entries.get_mut(&token).filter(|entry| !entry.gone)?;
        match entry.connection.next_call() {
            Ok(Some(call)) => {
                entry.unanswered += 1;
                if entry.unanswered > MAX_UNANSWERED {
                    tracing::warn!("a control client has too many requests under way: closed");
                    entry.gone = true;
                }
                Some((Caller { client: token, id: call.id }, call.request))
            }
            Ok(None) => None,
            Err(error) => {
                entry.leave(&error);
                None
            }
        }
    }

    /// The descriptors of a request that has just come. A client that sent fewer is closed: nobody can tell any more
    /// which descriptor belongs to what.
    pub(super) fn take_fds(&mut self, caller: Caller, count: usize) -> Option<Vec<OwnedFd>> {
        let entry = self.entries.get_mut(&caller.client)?;
        let fds = entry.connection.take_fds(count);
        if fds.is_none() {
            tracing::warn!("a control client sent a request without its descriptors: closed");
            entry.gone = true;
        }
        fds
    }

    /// Answers a request, if its client is still there.
    pub(super) fn answer(&mut self, caller: Caller, result: Result<Reply, Failure>) {
        let Some(entry) = self.entries.get_mut(&caller.client).filter(|entry| !entry.gone) else { return };
        entry.unanswered = entry.unanswered.saturating_sub(1);
        if let Err(error) = entry.connection.send(&Answer { id: caller.id, result }) {
            entry.leave(&error);
        }
    }

    /// Sends what waits for a client.
    pub(super) fn flush(&mut self, token: u32) {
        if let Some(entry) = self.entries.get_mut(&token)
            && let Err(error) = entry.connection.flush()
        {
            entry.leave(&error);
        }
    }

    /// Whether every answer is on its way.
    pub(super) fn is_flushed(&self) -> bool {
        self.entries.values().all(|entry| entry.gone || !entry.connection.has_unsent())
    }

    /// Watches clients for what they are ready for, and lets those go that are gone: their tokens.
    pub(super) fn settle(&mut self, ops: &mut EventOps) -> Vec<u32> {
        for (token, entry) in &mut self.entries {
            entry.watch(*token, ops);
        }
        let gone: Vec<u32> = self.entries.iter().filter(|(_, entry)| entry.gone).map(|(token, _)| *token).collect();
        for token in &gone {
            self.entries.remove(token);
        }
        gone
    }

    fn add(&mut self, connection: Connection) {
        let entry = Entry { connection, unanswered: 0, interest: EventSet::empty(), gone: false };
        self.entries.insert(self.next_token, entry);
        self.next_token = self.next_token.checked_add(1).unwrap_or(FIRST_TOKEN + 1);
    }
}

impl Entry {
    fn leave(&mut self, error: &ConnectionError) {
        match error {
            ConnectionError::Closed => tracing::debug!("a control client left"),
            error => tracing::warn!(error = crate::chain(error), "a control connection is closed"),
        }
        self.gone = true;
    }

    fn watch(&mut self, token: u32, ops: &mut EventOps) {
        let wanted = match (self.gone, self.connection.has_unsent()) {
            (true, _) => EventSet::empty(),
            (false, true) => EventSet::IN | EventSet::OUT,
            (false, false) => EventSet::IN,
        };
        if wanted == self.interest {
            return;
        }
        let events = Events::with_data_raw(self.connection.as_fd().as_raw_fd(), token, wanted);
        let result = match (self.interest.is_empty(), wanted.is_empty()) {
            (true, _) => ops.add(events),
            (false, true) => ops.remove(events),
            (false, false) => ops.modify(events),
        };
        self.interest = wanted;
        if let Err(error) = result {
            tracing::error!(%error, "cannot watch a control connection: closed");
            self.gone = true;
        }
    }
}

/// Listens at `path`, for the caller's user only.
///
/// # Errors
/// The path is taken, too long for a socket address, or cannot be made.
pub fn listen(path: &std::path::Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
