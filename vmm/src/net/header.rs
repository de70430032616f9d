//! The header of every frame, `struct virtio_net_hdr_v1` (virtio 1.2, section 5.1.6). It describes the checksums and
//! the segmentation that one side left to the other. A tap with `IFF_VNET_HDR` uses the same header.

/// Length of the header in bytes.
pub(super) const HEADER_LEN: usize = 12;

/// Offset of `num_buffers`, the number of receive buffers that a frame fills.
const NUM_BUFFERS: usize = 10;

/// The longest frame with its header in bytes: 64 KiB of data to be segmented, an Ethernet header and a VLAN tag.
pub(super) const MAX_FRAME: usize = HEADER_LEN + (64 << 10) + 18;

/// Sets `num_buffers` in the header of `frame`.
pub(super) fn set_buffers(frame: &mut [u8], count: u16) {
    if let Some(field) = frame.get_mut(NUM_BUFFERS..HEADER_LEN) {
        field.copy_from_slice(&count.to_le_bytes());
    }
}
