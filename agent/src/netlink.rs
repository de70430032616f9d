//! A connection to the kernel's network configuration (rtnetlink(7)) of one network namespace.
//!
//! The kernel answers at once, so no request waits and no asynchronous runtime is needed. Messages consist of a type
//! and an uninterpreted body, so that the agent's program does not contain parsers that it does not use.

use std::convert::Infallible;
use std::io;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// A message as type and bytes.
struct Raw {
    kind: u16,
    body: Vec<u8>,
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, body: payload.to_owned() })
    }
}

/// A connection.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Connects to the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// No descriptor is available.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a change: a message of type `kind` (`RTM_*`). `flags` are `NLM_F_*` in addition to those of every request.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn change(&mut self, kind: u16, body: &impl Emitable, flags: u16) -> io::Result<()> {
        self.send(kind, body, NLM_F_ACK | flags)?;
        self.receive_answers(|_| {})
    }

    /// Requests a list. Returns the bodies of its messages.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn list(&mut self, kind: u16, body: &impl Emitable) -> io::Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        self.send(kind, body, NLM_F_DUMP)?;
        self.receive_answers(|body| found.push(body))?;
        Ok(found)
    }

    fn send(&mut self, kind: u16, body: &impl Emitable, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut raw = Raw { kind, body: vec![0; body.buffer_len()] };
        body.emit(&mut raw.body);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(raw));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Passes the bodies of messages to `on_body` until the end of a list, an acknowledgement or an error.
    fn receive_answers(&mut self, mut on_body: impl FnMut(Vec<u8>)) -> io::Result<()> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<Raw>::deserialize(rest).map_err(io::Error::other)?;
                // Messages are aligned to four bytes.
                let length = usize::try_from(message.header.length).map_err(io::Error::other)?.next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => on_body(message.body),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(()),
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    #[test]
    fn interfaces_are_listed_and_a_missing_one_cannot_be_changed() {
        let mut netlink = Netlink::open().unwrap();
        assert!(!netlink.list(libc::RTM_GETLINK, &LinkMessage::default()).unwrap().is_empty());
        let mut nothing = LinkMessage::default();
        nothing.header.index = i32::MAX.cast_unsigned();
        let refused = netlink.change(libc::RTM_SETLINK, &nothing, 0).unwrap_err();
        assert_ne!(refused.raw_os_error(), None, "{refused}");
    }
}
