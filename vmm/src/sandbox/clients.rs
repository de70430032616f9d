//! The clients that are connected to the control socket.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use agent::Failure;
use event_manager::{EventOps, EventSet, Events};

use crate::control::{Answer, Connection, ConnectionError, Reply, Request};

/// Most clients at a time. Each command of the runtime is one.
const MAX_CLIENTS: usize = 1024;

/// Most unanswered requests of one client.
const MAX_UNANSWERED: usize = 1024;

/// The token of the inherited client. Smaller tokens are not clients.
pub(super) const FIRST_CLIENT_TOKEN: u32 = 16;

/// A client's request that waits for its answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Caller {
    /// The client's event token.
    pub(super) client: u32,
    /// The call's id, which the client chose.
    pub(super) id: u64,
}

#[derive(Debug)]
struct Client {
    connection: Connection,
    unanswered: usize,
    /// The events that the event loop watches for; empty if it does not watch the connection.
    watched: EventSet,
    closed: bool,
}

/// The clients by event token.
#[derive(Debug)]
pub(super) struct Clients {
    by_token: BTreeMap<u32, Client>,
    next_token: u32,
    /// A reserved descriptor. It is closed for a moment when no other descriptor is left, to accept and close a connection
    /// that would otherwise stay in the listener's queue.
    reserve_fd: Option<OwnedFd>,
}

impl Clients {
    /// Only the inherited client. Its token is [`FIRST_CLIENT_TOKEN`].
    pub(super) fn new(inherited: Connection, listener: &UnixListener) -> Self {
        let reserve_fd = listener.as_fd().try_clone_to_owned().ok();
        let mut clients = Self { by_token: BTreeMap::new(), next_token: FIRST_CLIENT_TOKEN, reserve_fd };
        clients.add(inherited);
        clients
    }

    /// Accepts all pending connections.
    ///
    /// # Errors
    /// `accept` failed, for example because no file descriptor is left.
    pub(super) fn accept(&mut self, listener: &UnixListener) -> io::Result<()> {
        loop {
            match listener.accept() {
                Ok((stream, _)) if self.by_token.len() < MAX_CLIENTS => self.add(Connection::new(stream)),
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

    /// Removes one connection from the listener's queue and closes it.
    fn refuse(&mut self, listener: &UnixListener) {
        self.reserve_fd = None;
        drop(listener.accept());
        self.reserve_fd = listener.as_fd().try_clone_to_owned().ok();
    }

    /// The next request of the client with `token`. Closes a client that breaks the protocol.
    pub(super) fn next_request(&mut self, token: u32) -> Option<(Caller, Request)> {
        let client = self.by_token.get_mut(&token).filter(|client| !client.closed)?;
        match client.connection.next_call() {
            Ok(Some(call)) => {
                client.unanswered += 1;
                if client.unanswered > MAX_UNANSWERED {
                    tracing::warn!("a control client has too many requests under way: closed");
                    client.closed = true;
                }
                Some((Caller { client: token, id: call.id }, call.request))
            }
            Ok(None) => None,
            Err(error) => {
                client.close(&error);
                None
            }
        }
    }

    /// The descriptors of the request that [`Clients::next_request`] returned last. Closes a client that sent fewer than
    /// `count`: its later descriptors can no longer be assigned to requests.
    pub(super) fn take_fds(&mut self, caller: Caller, count: usize) -> Option<Vec<OwnedFd>> {
        let client = self.by_token.get_mut(&caller.client)?;
        let fds = client.connection.take_fds(count);
        if fds.is_none() {
            tracing::warn!("a control client sent a request without its descriptors: closed");
            client.closed = true;
        }
        fds
    }

    /// Answers a request if its client is still connected.
    pub(super) fn answer(&mut self, caller: Caller, result: Result<Reply, Failure>) {
        let Some(client) = self.by_token.get_mut(&caller.client).filter(|client| !client.closed) else { return };
        client.unanswered = client.unanswered.saturating_sub(1);
        if let Err(error) = client.connection.send(&Answer { id: caller.id, result }) {
            client.close(&error);
        }
    }

    /// Sends the buffered answers of a client as far as its socket takes them.
    pub(super) fn flush(&mut self, token: u32) {
        if let Some(client) = self.by_token.get_mut(&token)
            && let Err(error) = client.connection.flush()
        {
            client.close(&error);
        }
    }

    /// Whether no answer is buffered.
    pub(super) fn is_flushed(&self) -> bool {
        self.by_token.values().all(|client| client.closed || !client.connection.has_unsent())
    }

    /// Updates the events that the event loop watches for, removes the closed clients and returns their tokens.
    pub(super) fn update_watches(&mut self, ops: &mut EventOps) -> Vec<u32> {
        for (token, client) in &mut self.by_token {
            client.update_watch(*token, ops);
        }
        let closed: Vec<u32> =
            self.by_token.iter().filter(|(_, client)| client.closed).map(|(token, _)| *token).collect();
        for token in &closed {
            self.by_token.remove(token);
        }
        closed
    }

    fn add(&mut self, connection: Connection) {
        let client = Client { connection, unanswered: 0, watched: EventSet::empty(), closed: false };
        self.by_token.insert(self.next_token, client);
        self.next_token = self.next_token.checked_add(1).unwrap_or(FIRST_CLIENT_TOKEN + 1);
    }
}

impl Client {
    fn close(&mut self, error: &ConnectionError) {
        match error {
            ConnectionError::Closed => tracing::debug!("a control client disconnected"),
            error => tracing::warn!(error = crate::chain(error), "a control connection is closed"),
        }
        self.closed = true;
    }

    fn update_watch(&mut self, token: u32, ops: &mut EventOps) {
        let wanted = match (self.closed, self.connection.has_unsent()) {
            (true, _) => EventSet::empty(),
            (false, true) => EventSet::IN | EventSet::OUT,
            (false, false) => EventSet::IN,
        };
        if wanted == self.watched {
            return;
        }
        let events = Events::with_data_raw(self.connection.as_fd().as_raw_fd(), token, wanted);
        let result = match (self.watched.is_empty(), wanted.is_empty()) {
            (true, _) => ops.add(events),
            (false, true) => ops.remove(events),
            (false, false) => ops.modify(events),
        };
        self.watched = wanted;
        if let Err(error) = result {
            tracing::error!(%error, "cannot watch a control connection: closed");
            self.closed = true;
        }
    }
}
