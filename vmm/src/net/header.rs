//! The header before every frame, `struct virtio_net_hdr_v1` (virtio 1.2, section 5.1.6), which a tap with `IFF_VNET_HDR`
//! reads and writes just so: checksums and segmentation that one side left to the other.

/// Its length in bytes.
pub(super) const HEADER_LEN: usize = 12;

/// Where `num_buffers` is in it: how many buffers of the receive queue a frame fills.
const NUM_BUFFERS: usize = 10;

/// The longest frame with its header: 64 KiB of what one side has the other segment, an Ethernet header and a VLAN tag.
pub(super) const MAX_FRAME: usize = HEADER_LEN + (64 << 10) + 18;

/// Says in `frame`'s header how many buffers it fills.
pub(super) fn set_buffers(frame: &mut [u8], count: u16) {
    if let Some(field) = frame.get_mut(NUM_BUFFERS..HEADER_LEN) {
        field.copy_from_slice(&count.to_le_bytes());
    }
}
