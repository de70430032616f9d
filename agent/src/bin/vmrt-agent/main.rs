//! `vmrt-agent`: PID 1 of every guest, and all of its user space besides the containers.
//!
//! The agent has only one thread, because the processes that it makes continue with a copy of its memory.
//!
//! Its modules are layers. Each uses only those above it in this list, which a test of `vmrt-tests` checks.
//!
//! 1. `error`: the error of a request.
//! 2. `sys`: system calls that no crate wraps, and files of kernel file systems.
//! 3. `machine`: the guest as a whole: set-up, file systems, limits, CPUs, clock, devices, log.
//! 4. `events`: the epoll instance and the sources of its events.
//! 5. `streams`: byte streams between the guest and ports of the host.
//! 6. `network`: interfaces and name server of a container.
//! 7. `processes`: the state of processes, their standard streams, and their reports to the agent.
//! 8. `container`: a container's namespaces, cgroup, root file system and processes.
//! 9. `event_loop`: the state of the agent, and the handling of events and requests.
//!
//! The start-up code of the Rust runtime is left out, because it needs `/dev/null`, which the agent makes first.
#![cfg_attr(not(test), no_main)]

mod container;
mod error;
mod event_loop;
mod events;
mod machine;
mod network;
mod processes;
mod streams;
mod sys;

use std::ffi::{c_char, c_int};

use event_loop::{Agent, Fatal};
use machine::log::{self, Level};
use machine::{clock, priority};

/// The exit status of a program that cannot be executed.
const NOT_EXECUTABLE: c_int = 126;

/// The entry point that the C library calls.
// SAFETY: this is the only definition of `main` in the program, and it has the signature that the C library calls.
#[cfg_attr(not(test), unsafe(export_name = "main"))]
#[cfg_attr(test, expect(dead_code, reason = "the test harness has its own entry point"))]
extern "C" fn start(_count: c_int, _arguments: *const *const c_char) -> c_int {
    if !machine::is_booting() {
        eprintln!("vmrt-agent runs only as the first process of a virtual machine");
        return NOT_EXECUTABLE;
    }
    let started_ns = clock::uptime_ns();
    std::panic::set_hook(Box::new(|panic| {
        log::line(Level::Fatal, panic);
        machine::reset();
    }));
    let Err(error) = serve(started_ns);
    log::line(Level::Fatal, error::chain(&error));
    machine::reset()
}

fn serve(started_ns: u64) -> Result<std::convert::Infallible, Fatal> {
    let null = machine::set_up()?;
    log::warn(priority::raise_for_agent());
    Agent::new(null, started_ns)?.run()
}
