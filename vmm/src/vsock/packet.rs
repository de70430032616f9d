//! A packet from the guest, in any number of descriptors.
//!
//! A driver may split a packet into descriptors at any position (virtio 1.2, 2.7.4.2). Linux sends a payload that is
//! not contiguous page by page. The `virtio-vsock` crate cannot read such packets, so it is used only for packets to
//! the guest.

use thiserror::Error;
use virtio_queue::DescriptorChain;
use virtio_vsock::packet::PKT_HEADER_SIZE;
use vm_memory::{ByteValued, GuestMemory, GuestMemoryError, Le16, Le32, Permissions, VolatileSlice};

use super::MAX_PAYLOAD;
use crate::arch::Memory;

/// The most descriptors of a packet. Linux needs one for the header and one for each page of the payload. A table of
/// indirect descriptors can hold more than the queue.
const MAX_DESCRIPTORS: usize = 128;

/// Why a chain is not a packet.
#[derive(Debug, Error)]
pub(super) enum PacketError {
    #[error("a descriptor of the chain is writable")]
    Writable,
    #[error("the chain does not lie in guest memory")]
    Memory(#[from] GuestMemoryError),
    #[error("the chain has too many descriptors")]
    TooManyDescriptors,
    #[error("the chain is shorter than its packet")]
    Short,
    #[error("the payload of {0} bytes is longer than the limit")]
    TooLong(u32),
}

/// A packet's header (virtio 1.2, 5.10.6).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Header {
    src_cid: [Le32; 2],
    dst_cid: [Le32; 2],
    src_port: Le32,
    dst_port: Le32,
    len: Le32,
    kind: Le16,
    op: Le16,
    flags: Le32,
    buf_alloc: Le32,
    fwd_cnt: Le32,
}

// SAFETY: the structure consists of integers without padding.
unsafe impl ByteValued for Header {}

const _: () = assert!(size_of::<Header>() == PKT_HEADER_SIZE);

/// A packet from the guest: a copy of its header, and its payload in guest memory.
#[derive(Debug)]
pub(super) struct GuestPacket<'m> {
    header: Header,
    payload: Vec<VolatileSlice<'m>>,
}

impl<'m> GuestPacket<'m> {
    /// Reads a chain of the transmit queue.
    pub(super) fn parse(memory: &'m Memory, chain: &mut DescriptorChain<&'m Memory>) -> Result<Self, PacketError> {
        let mut parts = Vec::with_capacity(2);
        for (count, descriptor) in chain.enumerate() {
            if count == MAX_DESCRIPTORS {
                return Err(PacketError::TooManyDescriptors);
            }
            if descriptor.is_write_only() {
                return Err(PacketError::Writable);
            }
            let length = usize::try_from(descriptor.len()).map_err(|_| PacketError::Short)?;
            for slice in memory.get_slices(descriptor.addr(), length, Permissions::Read)? {
                parts.push(slice?);
            }
        }
        let header = take_header(&mut parts)?;
        let length = u32::from(header.len);
        if length > MAX_PAYLOAD {
            return Err(PacketError::TooLong(length));
        }
        cut(&mut parts, length as usize)?;
        Ok(Self { header, payload: parts })
    }

    pub(super) fn src_cid(&self) -> u64 {
        join(self.header.src_cid)
    }

    pub(super) fn dst_cid(&self) -> u64 {
        join(self.header.dst_cid)
    }

    pub(super) fn src_port(&self) -> u32 {
        self.header.src_port.into()
    }

    pub(super) fn dst_port(&self) -> u32 {
        self.header.dst_port.into()
    }

    /// The socket type.
    pub(super) fn kind(&self) -> u16 {
        self.header.kind.into()
    }

    pub(super) fn op(&self) -> u16 {
        self.header.op.into()
    }

    pub(super) fn flags(&self) -> u32 {
        self.header.flags.into()
    }

    pub(super) fn buf_alloc(&self) -> u32 {
        self.header.buf_alloc.into()
    }

    pub(super) fn fwd_cnt(&self) -> u32 {
        self.header.fwd_cnt.into()
    }

    /// Length of the payload, at most [`MAX_PAYLOAD`].
    pub(super) fn len(&self) -> u32 {
        self.header.len.into()
    }

    /// The parts of the payload, [`GuestPacket::len`] bytes in total.
    pub(super) fn payload(&self) -> &[VolatileSlice<'m>] {
        &self.payload
    }
}

fn join([low, high]: [Le32; 2]) -> u64 {
    u64::from(u32::from(high)) << 32 | u64::from(u32::from(low))
}

/// Removes the header from the front of `parts`.
fn take_header(parts: &mut Vec<VolatileSlice>) -> Result<Header, PacketError> {
    let mut header = Header::default();
    let bytes = header.as_mut_slice();
    let mut filled = 0;
    while filled < bytes.len() {
        let part = parts.first_mut().ok_or(PacketError::Short)?;
        let count = part.copy_to(&mut bytes[filled..]);
        filled += count;
        match part.offset(count) {
            Ok(rest) if !rest.is_empty() => *part = rest,
            _ => drop(parts.remove(0)),
        }
    }
    Ok(header)
}

/// Truncates `parts` to `length` bytes.
fn cut(parts: &mut Vec<VolatileSlice>, length: usize) -> Result<(), PacketError> {
    let mut left = length;
    let mut needed = 0;
    for part in parts.iter_mut() {
        if left == 0 {
            break;
        }
        let count = part.len().min(left);
        *part = part.subslice(0, count).map_err(|_| PacketError::Short)?;
        left -= count;
        needed += 1;
    }
    parts.truncate(needed);
    if left == 0 { Ok(()) } else { Err(PacketError::Short) }
}
