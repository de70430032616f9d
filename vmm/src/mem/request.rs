//! What the driver asks for, and the answers (virtio 1.2, section 5.15.6).

use vm_memory::{ByteValued, Le16, Le64};

/// `VIRTIO_MEM_REQ_*`.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// `struct virtio_mem_req`. All kinds that concern a range of blocks have the same form.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct RawRequest {
    kind: Le16,
    padding: [Le16; 3],
    address: Le64,
    count: Le16,
    more_padding: [Le16; 3],
}

// SAFETY: integers without gaps between them, of which every value is valid.
unsafe impl ByteValued for RawRequest {}

/// `struct virtio_mem_resp`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct RawResponse {
    kind: Le16,
    padding: [Le16; 3],
    state: Le16,
}

// SAFETY: integers without gaps between them, of which every value is valid.
unsafe impl ByteValued for RawResponse {}

/// A range of blocks as the driver names it: address of the first, and their number.
pub(super) type BlockRange = (u64, u16);

/// What the driver wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Request {
    Plug(BlockRange),
    Unplug(BlockRange),
    UnplugAll,
    State(BlockRange),
    Unknown,
}

impl From<RawRequest> for Request {
    fn from(raw: RawRequest) -> Self {
        let range = (raw.address.to_native(), raw.count.to_native());
        match raw.kind.to_native() {
            PLUG => Self::Plug(range),
            UNPLUG => Self::Unplug(range),
            UNPLUG_ALL => Self::UnplugAll,
            STATE => Self::State(range),
            _ => Self::Unknown,
        }
    }
}

/// `VIRTIO_MEM_RESP_*`. The device is never busy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ResponseType {
    Ack = 0,
    /// Not now: it would be more than was asked for.
    Nack = 1,
    /// Never.
    Error = 3,
}

impl RawResponse {
    /// An answer, and the state that a request for one is told.
    pub(super) fn new(answer: ResponseType, state: u16) -> Self {
        Self { kind: (answer as u16).into(), padding: Default::default(), state: state.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_have_the_sizes_of_the_specification() {
        assert_eq!((size_of::<RawRequest>(), size_of::<RawResponse>()), (24, 10));
    }

    #[test]
    fn each_kind_is_understood() {
        let parse = |kind: u8| {
            let mut bytes = [0; 24];
            bytes[0] = kind;
            bytes[8..16].copy_from_slice(&0x1_0020_0000_u64.to_le_bytes());
            bytes[16] = 7;
            Request::from(*RawRequest::from_slice(&bytes).unwrap())
        };
        let range = (0x1_0020_0000, 7);
        assert_eq!(
            [parse(0), parse(1), parse(2), parse(3), parse(4)],
            [Request::Plug(range), Request::Unplug(range), Request::UnplugAll, Request::State(range), Request::Unknown]
        );
    }
}
