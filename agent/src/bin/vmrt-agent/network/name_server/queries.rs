//! Queries that arrive as datagrams, until they are answered.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::{NameServer, dns};
use crate::error::Error;
use crate::events::{Poll, Source};
use crate::machine::log;
use crate::streams::host::Host;

/// Maximum number of queries of all containers that wait for an answer.
const MAX_QUERIES: usize = 64;

/// The queries of all containers that wait for an answer, by their ids.
#[derive(Default)]
pub(crate) struct Queries {
    pending: BTreeMap<u32, Query>,
}

struct Query {
    /// Id of the name server that received it.
    server: u32,
    client: SocketAddrV4,
    /// Maximum size of the answer, in bytes.
    max_size: usize,
    stream: OwnedFd,
    /// The received part of the answer: two bytes of length, then the message.
    answer: Vec<u8>,
}

impl Query {
    /// Reads what has arrived of the answer, until it is complete. Returns whether the stream has ended.
    fn read(&mut self, buffer: &mut [u8]) -> bool {
        while dns::complete_answer(&self.answer).is_none() {
            match rustix::io::read(&self.stream, &mut *buffer) {
                Ok(0) => return true,
                Ok(count) => self.answer.extend_from_slice(&buffer[..count]),
                Err(Errno::AGAIN) => return false,
                Err(Errno::INTR) => {}
                Err(_) => return true,
            }
        }
        false
    }
}

impl Queries {
    /// Receives all queries that wait at the socket of `server`, and sends each to the host. `buffer` is scratch space.
    pub(crate) fn receive(&mut self, server: &NameServer, host: &Host, poll: &Poll, buffer: &mut [u8]) {
        loop {
            let (count, client) = match rustix::net::recvfrom(&server.datagrams, &mut *buffer, RecvFlags::empty()) {
                Ok((count, _, client)) => (count, client.and_then(|client| SocketAddrV4::try_from(client).ok())),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return,
                Err(error) => return log::warn(Err(Error::at("receive a query to the name server")(error))),
            };
            if let Some(client) = client {
                log::warn(self.send((server, host), client, &buffer[..count], poll));
            }
        }
    }

    /// On an error the query gets no answer, and the client repeats it.
    fn send(
        &mut self,
        (server, host): (&NameServer, &Host),
        client: SocketAddrV4,
        query: &[u8],
        poll: &Poll,
    ) -> Result<(), Error> {
        if self.pending.len() >= MAX_QUERIES {
            return Err(Error::at("forward a query to the name server")(Errno::MFILE));
        }
        let Ok(length) = u16::try_from(query.len()) else { return Ok(()) };
        let stream = host.connect(server.port).map_err(Error::at("connect to the name server"))?;
        // One write is enough: the buffer of a new connection is larger than a datagram.
        let message = [&length.to_be_bytes(), query].concat();
        rustix::io::write(&stream, &message).map_err(Error::at("send a query to the name server"))?;
        let id = poll.next_id();
        poll.watch(&stream, Source::Answer(id), EventFlags::IN)?;
        let query = Query { server: server.id, client, max_size: dns::max_size(query), stream, answer: Vec::new() };
        self.pending.insert(id, query);
        Ok(())
    }

    /// Receives a part of the answer to query `id`, and sends the complete answer to the client. `find_server` returns
    /// the name server with an id, unless its container is gone. `buffer` is scratch space.
    pub(crate) fn receive_answer<'a>(
        &mut self,
        id: u32,
        find_server: impl FnOnce(u32) -> Option<&'a NameServer>,
        buffer: &mut [u8],
    ) {
        let Some(query) = self.pending.get_mut(&id) else { return };
        let ended = query.read(buffer);
        let complete = dns::complete_answer(&query.answer);
        if !ended && complete.is_none() {
            return;
        }
        if let (Some(answer), Some(server)) = (complete, find_server(query.server)) {
            let answer = dns::fit(query.max_size, answer);
            // The client may have closed its socket.
            let _ = rustix::net::sendto(&server.datagrams, &answer, SendFlags::empty(), &query.client);
        }
        self.pending.remove(&id);
    }
}
