//! The shell's front door: every command of the runtime, as a person or an engine calls it.

mod bad_input;
mod clock;
mod commands;
mod crash;
mod devices;
mod exec;
mod files;
mod hooks;
mod host_mounts;
mod id_mappings;
mod isolation;
mod lifecycle;
mod limits;
mod machine;
mod mounts;
mod namespaces;
mod network;
mod pausing;
mod pods;
mod process;
mod resources;
mod rootless;
mod seccomp;
mod stdio;
mod systemd;
mod terminal;
