//! The device against a raw driver: no kernel in the way, so it can be as hostile as it likes.

mod driver;
mod life_cycle;
mod protocol_violations;
mod streams;

use std::os::fd::OwnedFd;

use super::header::*;
use super::{Bridge, Flow};
use driver::{Driver, Header};

fn bridge(source: Option<impl Into<OwnedFd>>, sink: Option<impl Into<OwnedFd>>) -> Bridge {
    Bridge::new(source.map(Into::into), sink.map(Into::into))
}

const NONE: Option<OwnedFd> = None;

/// A driver whose guest port 9 is connected to `bridge`; also the host port.
fn connected(bridge: Bridge) -> (Driver, u32, std::sync::Arc<Flow>) {
    let mut driver = Driver::new();
    let (port, flow) = driver.ports.listen(bridge);
    let answer = driver.exchange(Header::new(port, OP_REQUEST), b"");
    assert_eq!((answer[0].0.op, answer[0].0.src_port, answer[0].0.dst_port), (OP_RESPONSE, port, 9));
    assert_eq!(answer[0].0.buf_alloc, super::BUFFER_SIZE);
    (driver, port, flow)
}
