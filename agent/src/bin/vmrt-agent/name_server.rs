//! The name server that Docker has at 127.0.0.11 in the sandbox's network namespace on the host, led into a container.
//!
//! Two sockets in the container's network namespace, for datagrams and for connections, stand for it, both at a port of
//! the kernel's choice: port 53 is the container's own, which may run a name server itself. Programs attached to the
//! container's cgroup let its processes see the one where they look for the other. To the host everything goes as DNS over
//! TCP (RFC 7766): connections as they are, and each datagram by a connection of its own.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::NAME_SERVER;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::bpf::{self, Hook, Instruction};
use crate::connection;
use crate::container::Container;
use crate::error::Error;
use crate::event_loop::{self, Agent, Source};
use crate::network;
use crate::special::Listener;
use crate::sys;

/// Questions of all containers that wait for their answer at once.
const MAX_QUESTIONS: usize = 64;

/// Connections that may wait to be taken.
const BACKLOG: i32 = 16;

/// The sockets that stand for a name server in one container.
pub(crate) struct NameServer {
    id: u32,
    /// The host's port that leads to it.
    port: u32,
    datagrams: OwnedFd,
    /// For connections.
    pub(crate) listener: Listener,
}

/// A question that came as a datagram, on its way.
pub(crate) struct Question {
    server: u32,
    client: SocketAddrV4,
    /// How long an answer it takes, in bytes.
    room: usize,
    stream: OwnedFd,
    /// What came back so far: two bytes of length, and so much of the answer.
    answer: Vec<u8>,
}

impl Agent {
    /// Lets the processes of `cgroup` find the name server behind the host's `port`, in the network namespace of `process`.
    pub(crate) fn make_name_server(
        &mut self,
        process: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
        port: u32,
    ) -> Result<NameServer, Error> {
        let sockets = network::inside(self.guest()?, process, || {
            // The address is there once the loopback is up, which the container's process may not have come to yet.
            sys::interface_up(b"lo")
                .and_then(|()| make_sockets())
                .map_err(Error::at("make the sockets of the name server"))
        })?;
        redirect(cgroup, sockets.number).map_err(Error::at("redirect the container to its name server"))?;
        let listener = self.add_listener(sockets.connections, port)?;
        let id = self.take_stream_id();
        self.watch(sockets.datagrams.as_fd(), Source::Questions(id), EventFlags::IN | EventFlags::ET)?;
        Ok(NameServer { id, port, datagrams: sockets.datagrams, listener })
    }

    /// Takes the questions that wait at a name server's socket, and sends each to the host.
    pub(crate) fn take_questions(&mut self, id: u32) {
        loop {
            let Some(server) = find(&self.containers, id) else { return };
            let (count, client) =
                match rustix::net::recvfrom(&server.datagrams, &mut self.chunk[..], RecvFlags::empty()) {
                    Ok((count, _, client)) => (count, client.and_then(|client| SocketAddrV4::try_from(client).ok())),
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => return,
                    Err(error) => return event_loop::warn(Err(Error::at("take a question to the name server")(error))),
                };
            let (port, query) = (server.port, self.chunk[..count].to_vec());
            if let Some(client) = client {
                event_loop::warn(self.pass_question(id, port, client, &query));
            }
        }
    }

    /// A question that cannot be passed on is not answered: who asked will ask again.
    fn pass_question(&mut self, server: u32, port: u32, client: SocketAddrV4, query: &[u8]) -> Result<(), Error> {
        if self.questions.len() >= MAX_QUESTIONS {
            return Err(Error::at("pass on a question to the name server")(Errno::MFILE));
        }
        let Ok(length) = u16::try_from(query.len()) else { return Ok(()) };
        let stream = connection::connect(port).map_err(Error::at("connect to the name server"))?;
        // A new connection takes more than a datagram holds.
        let question = [&length.to_be_bytes(), query].concat();
        rustix::io::write(&stream, &question).map_err(Error::at("ask the name server"))?;
        let id = self.take_stream_id();
        self.watch(stream.as_fd(), Source::Answer(id), EventFlags::IN)?;
        self.questions.insert(id, Question { server, client, room: room(query), stream, answer: Vec::new() });
        Ok(())
    }

    /// Takes what there is of an answer, and hands it over once it is whole.
    pub(crate) fn take_answer(&mut self, id: u32) {
        let Some(question) = self.questions.get_mut(&id) else { return };
        let ended = match rustix::io::read(&question.stream, &mut self.chunk[..]) {
            Ok(count) => {
                question.answer.extend_from_slice(&self.chunk[..count]);
                count == 0
            }
            Err(Errno::INTR | Errno::AGAIN) => false,
            Err(_) => true,
        };
        let whole = whole_answer(&question.answer);
        if !ended && whole.is_none() {
            return;
        }
        if let (Some(answer), Some(server)) = (whole, find(&self.containers, question.server)) {
            let answer = fit(question.room, answer);
            // Who asked may be gone.
            let _ = rustix::net::sendto(&server.datagrams, &answer, SendFlags::empty(), &question.client);
        }
        self.questions.remove(&id);
    }
}

fn find(containers: &BTreeMap<String, Container>, id: u32) -> Option<&NameServer> {
    containers.values().filter_map(|container| container.name_server.as_ref()).find(|server| server.id == id)
}

struct Sockets {
    datagrams: OwnedFd,
    connections: OwnedFd,
    /// The port of both.
    number: u16,
}

/// In the container's network namespace.
fn make_sockets() -> rustix::io::Result<Sockets> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connections = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&connections, &SocketAddrV4::new(NAME_SERVER, 0))?;
    let address = SocketAddrV4::try_from(rustix::net::getsockname(&connections)?)?;
    rustix::net::listen(&connections, BACKLOG)?;
    let datagrams = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    rustix::net::bind(&datagrams, &address)?;
    Ok(Sockets { datagrams, connections, number: address.port() })
}

/// Lets processes of `cgroup` that mean port 53 of the name server have `port`, and see it as port 53.
fn redirect(cgroup: BorrowedFd<'_>, port: u16) -> rustix::io::Result<()> {
    const DNS: u16 = 53;
    let (there, back) = (replace_port(DNS, port), replace_port(port, DNS));
    bpf::attach(Hook::CONNECT4, &there, cgroup)?;
    bpf::attach(Hook::SENDMSG4, &there, cgroup)?;
    bpf::attach(Hook::RECVMSG4, &back, cgroup)?;
    bpf::attach(Hook::GETPEERNAME4, &back, cgroup)
}

/// A program that gives the name server's address another port.
fn replace_port(from: u16, to: u16) -> [Instruction; 8] {
    const CONTEXT: u8 = 1;
    const VALUE: u8 = 2;
    /// Places of the address and of the port in the kernel's `struct bpf_sock_addr`, both in the network's byte order.
    const ADDRESS: i16 = 4;
    const PORT: i16 = 24;
    let address = i32::from_ne_bytes(NAME_SERVER.octets());
    let in_network_order = |port: u16| i32::from(port.to_be());
    [
        Instruction::load(VALUE, CONTEXT, ADDRESS),
        Instruction::jump_if_not(VALUE, address, 4),
        Instruction::load(VALUE, CONTEXT, PORT),
        Instruction::jump_if_not(VALUE, in_network_order(from), 2),
        Instruction::set(VALUE, in_network_order(to)),
        Instruction::store(CONTEXT, PORT, VALUE),
        // The call goes on.
        Instruction::set(0, 1),
        Instruction::exit(),
    ]
}

/// The answer behind its length (RFC 1035, section 4.2.2), if all of it is there.
fn whole_answer(received: &[u8]) -> Option<&[u8]> {
    let (length, rest) = received.split_first_chunk::<2>()?;
    rest.get(..usize::from(u16::from_be_bytes(*length)))
}

/// Length of a message's header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;

/// The answer as a datagram. Where it is larger than who asked takes, it says so: the question with the bits that mean
/// "response" and "truncated", on which it is asked again by a connection.
fn fit(room: usize, answer: &[u8]) -> Vec<u8> {
    const RESPONSE: u8 = 0x80;
    const TRUNCATED: u8 = 0x02;
    if answer.len() <= room {
        return answer.to_vec();
    }
    let mut short = answer[..question_end(answer).unwrap_or(HEADER)].to_vec();
    short[2] |= RESPONSE | TRUNCATED;
    // No answers, authorities or additional records; and no question where it could not be read.
    short[6..HEADER].fill(0);
    if short.len() == HEADER {
        short[4..6].fill(0);
    }
    short
}

/// How long an answer may be: 512 bytes, or what the query's OPT record says (RFC 6891, section 6.2.3).
fn room(query: &[u8]) -> usize {
    const WITHOUT_OPT: usize = 512;
    const OPT: [u8; 3] = [0, 0, 41];
    // In a query it stands alone behind the question: an empty name, its type, and in the place of the class the size.
    let record = question_end(query).and_then(|end| query.get(end..)).and_then(|record| record.strip_prefix(&OPT));
    match record.and_then(|record| record.first_chunk::<2>()) {
        Some(size) => usize::from(u16::from_be_bytes(*size)).max(WITHOUT_OPT),
        None => WITHOUT_OPT,
    }
}

/// Where a message's one question ends: behind labels, their end, type and class.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match usize::from(*message.get(at)?) {
            0 => break,
            length @ 1..64 => at += 1 + length,
            // A question is the first name, so there is nothing it could be compressed with.
            _ => return None,
        }
    }
    let end = at + 5;
    (end <= message.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A query for the address of `name`, with `more` behind its question.
    fn query(name: &[u8], more: &[u8]) -> Vec<u8> {
        let header = [0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!more.is_empty())];
        [&header, name, &[0, 0, 1, 0, 1], more].concat()
    }

    const NAME: &[u8] = b"\x06server\x04test";

    /// An OPT record that has room for 1,232 bytes.
    const OPT: &[u8] = &[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn an_answer_is_whole_when_its_length_is_there() {
        assert_eq!(whole_answer(&[0]), None);
        assert_eq!(whole_answer(&[0, 3, 1, 2]), None);
        assert_eq!(whole_answer(&[0, 3, 1, 2, 3]), Some(&[1, 2, 3][..]));
        assert_eq!(whole_answer(&[0, 0]), Some(&[][..]));
    }

    #[test]
    fn room_is_what_the_query_says() {
        assert_eq!(room(&query(NAME, &[])), 512);
        assert_eq!(room(&query(NAME, OPT)), 1232);
        assert_eq!(room(&query(NAME, &OPT[..4])), 512);
        assert_eq!(room(b"no query"), 512);
        assert_eq!(room(&query(&[0xc0, 12], OPT)), 512, "a question is not compressed");
    }

    #[test]
    fn an_answer_that_is_too_large_becomes_one_that_says_so() {
        let query = query(NAME, OPT);
        let mut answer = query.clone();
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 70, 0, 0, 0, 1]);
        answer.resize(1232, 7);
        assert_eq!(fit(room(&query), &answer), answer);
        answer.push(7);
        let mut expected = query[..query.len() - OPT.len()].to_vec();
        expected[2..12].copy_from_slice(&[0x83, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fit(room(&query), &answer), expected);
        // An answer that is no message at all.
        let short = fit(room(&query), &[0xff; 2000]);
        assert_eq!((short.len(), &short[4..]), (HEADER, &[0; 8][..]));
    }

    #[test]
    fn ports_are_in_the_networks_order() {
        let program = replace_port(53, 0x1234);
        assert_eq!(program[1], Instruction::jump_if_not(2, 0x0b00_007f, 4));
        assert_eq!(program[3], Instruction::jump_if_not(2, 0x3500, 2));
        assert_eq!(program[4], Instruction::set(2, 0x3412));
    }
}
