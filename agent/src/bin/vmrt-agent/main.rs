//! `vmrt-agent`: PID 1 of every guest, and all of its user space besides the containers.
//!
//! It has one thread, because it makes processes that go on with a copy of its memory. See [`event_loop`] for how it
//! spends its life, [`container::init`] for what a new process does.
//!
//! The Rust runtime's own start is left out: it needs `/dev/null`, which is made here first.
#![cfg_attr(not(test), no_main)]

mod bpf;
mod clock;
mod connection;
mod container;
mod cpus;
mod device_directories;
mod error;
mod event_loop;
mod lifecycle;
mod log;
mod loop_devices;
mod machine;
mod name_server;
mod network;
mod processes;
mod requests;
mod special;
mod streams;
mod supervision;
mod sys;

use std::ffi::{c_char, c_int};

use event_loop::{Agent, Fatal};
use log::Level;

/// Where the C library begins the program.
// SAFETY: the one definition of `main` in the program, with the signature that the C library calls.
#[cfg_attr(not(test), unsafe(export_name = "main"))]
#[cfg_attr(test, expect(dead_code, reason = "the test harness has its own beginning"))]
extern "C" fn start(_count: c_int, _arguments: *const *const c_char) -> c_int {
    let started_ns = event_loop::uptime_ns();
    std::panic::set_hook(Box::new(|panic| {
        log::line(Level::Fatal, panic);
        machine::reset();
    }));
    let Err(error) = serve(started_ns);
    log::line(Level::Fatal, event_loop::chain(&error));
    machine::reset()
}

fn serve(started_ns: u64) -> Result<std::convert::Infallible, Fatal> {
    let null = machine::set_up()?;
    event_loop::warn(machine::come_first());
    Agent::new(null, started_ns)?.run()
}
