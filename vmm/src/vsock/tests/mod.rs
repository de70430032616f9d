//! Tests of the device with a raw driver. No kernel is involved, so the driver can violate the protocol.

mod credit;
mod driver;
mod handshake;
mod life_cycle;
mod protocol_violations;
mod streams;

use std::os::fd::OwnedFd;

use super::header::*;
use super::{Bridge, Flow, Ports};
use driver::{Driver, Header};

fn bridge(source: Option<impl Into<OwnedFd>>, sink: Option<impl Into<OwnedFd>>) -> Bridge {
    Bridge::new(source.map(Into::into), sink.map(Into::into))
}

const NONE: Option<OwnedFd> = None;

/// A driver whose guest port 9 is connected to `bridge`, with the host port and the flow.
fn connected(bridge: Bridge) -> (Driver, u32, std::sync::Arc<Flow>) {
    let mut driver = Driver::new();
    let (port, flow) = driver.ports.listen(bridge);
    let answer = driver.connect(Header::new(port, OP_REQUEST));
    assert_eq!((answer[0].0.op, answer[0].0.src_port, answer[0].0.dst_port), (OP_RESPONSE, port, 9));
    assert_eq!(answer[0].0.buf_alloc, super::BUFFER_SIZE);
    (driver, port, flow)
}
