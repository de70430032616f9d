//! A sandbox at run time: one virtual machine, its containers, and the clients that control them.
//!
//! # Modules
//! A module depends only on those above it.
//!
//! 1. `clients`: connections to the control socket. `agent_connection`: the connection to the agent in the guest.
//!    `signals`: signals to the VMM's process. `host_sockets`: sockets of the host that containers may connect to.
//! 2. `containers`: processes, streams, owners and OOM kills of the containers.
//! 3. `failures`: failures that clients receive.
//! 4. `memory_resize`: a pending change of the machine's memory. `clock`: comparison of the guest's clock with the host's.
//!    `template_saver`: saves a machine as a template. `helper_tasks`: what the helper does for the VMM. `interface_monitor`: changes of the network namespace.
//! 5. `controller`: the event loop's subscriber, which connects all of them. `container_proxy`: the host process of a
//!    container that runs in another container's machine.
//! 6. `launch`: from the first request to the exit status.
//!
//! # How a sandbox ends
//! A sandbox ends with the first process of its main container. When all its output was written and its waiting clients
//! were answered, the VMM exits with the process's status, or with 128 plus the signal's number if a signal killed it.
//!
//! In these cases the VMM exits with [`GUEST_DIED`], and waiting clients receive a failure of kind
//! [`agent::FailureKind::GuestDied`] with the cause:
//! - The guest's kernel panics, the guest resets its processor, or a vCPU cannot continue.
//! - The agent does not send `Hello` in time, closes its connection or violates the protocol.
//! - The inherited client disconnects before the main container is created: nothing supervises the sandbox then.
//!
//! # Signals
//! The VMM forwards `SIGTERM`, `SIGINT`, `SIGHUP`, `SIGQUIT`, `SIGUSR1` and `SIGUSR2` to the main container's first
//! process. Before the container is created, each of the first four ends the sandbox with 128 plus the signal's number.
//! On `SIGWINCH` the guest's terminal gets the size of the host's.

pub(crate) mod agent_connection;
mod clients;
mod clock;
mod container_proxy;
mod containers;
mod controller;
mod failures;
mod helper_tasks;
mod host_sockets;
mod interface_monitor;
mod launch;
mod machine_setup;
mod memory_resize;
mod signals;
mod template_saver;
#[cfg(test)]
mod tests;

pub use agent_connection::AgentError;
pub use container_proxy::ProxyError;
pub use controller::{Controller, Parts, TemplateRole};
pub use failures::GUEST_DIED;
pub use host_sockets::Connector;
pub use interface_monitor::open_changes;
pub use launch::{LaunchError, run};
pub use signals::Signals;
pub use template_saver::TemplateSaver;
