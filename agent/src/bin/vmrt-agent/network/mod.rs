//! The network of containers: interfaces, and access to the name server of the host.

pub(crate) mod interfaces;
pub(crate) mod links;
pub(crate) mod messages;
pub(crate) mod name_server;
pub(crate) mod namespace;
