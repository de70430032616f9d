//! The driver's requests and their responses (virtio 1.2, section 5.15.6).

use vm_memory::{ByteValued, Le16, Le64};

/// `VIRTIO_MEM_REQ_*`.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// `struct virtio_mem_req`. All types of requests for a range of blocks have the same layout.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct RawRequest {
    kind: Le16,
    padding: [Le16; 3],
    address: Le64,
    count: Le16,
    more_padding: [Le16; 3],
}

// SAFETY: the structure consists of integers without padding, and all values are valid.
unsafe impl ByteValued for RawRequest {}

/// `struct virtio_mem_resp`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct RawResponse {
    kind: Le16,
    padding: [Le16; 3],
    state: Le16,
}

// SAFETY: the structure consists of integers without padding, and all values are valid.
unsafe impl ByteValued for RawResponse {}

/// A range of blocks: the guest-physical address of the first, and their number.
pub(super) type BlockRange = (u64, u16);

/// A request.
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

/// `VIRTIO_MEM_RESP_*`. The device never answers `VIRTIO_MEM_RESP_BUSY`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ResponseType {
    Ack = 0,
    /// Refused now: it would exceed the requested size.
    Nack = 1,
    /// Invalid.
    Error = 3,
}

impl RawResponse {
    /// A response, with the state that a `STATE` request asks for.
    pub(super) fn new(answer: ResponseType, state: u16) -> Self {
        Self { kind: (answer as u16).into(), padding: Default::default(), state: state.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_specification() {
        assert_eq!((size_of::<RawRequest>(), size_of::<RawResponse>()), (24, 10));
    }

    #[test]
    fn each_request_type_is_parsed() {
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
