//! Sandboxes: the VMM process of each, the control connection to it, and the containers in it with their records.

pub(crate) mod connection;
pub(crate) mod context;
pub(crate) mod control_socket;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod foreground;
pub(crate) mod helper;
pub(crate) mod interfaces;
pub(crate) mod kill;
pub(crate) mod machine_files;
pub(crate) mod name_server;
pub(crate) mod pause;
pub(crate) mod pid_file;
pub(crate) mod processes;
pub(crate) mod record;
pub(crate) mod shared;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod store;
pub(crate) mod template;
pub(crate) mod update;
pub(crate) mod vmm_process;
