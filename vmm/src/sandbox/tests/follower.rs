//! Following the interfaces of the network namespace.

use nix::sched::{CloneFlags, unshare};

use super::*;
