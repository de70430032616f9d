//! Tests of the server with raw requests, without a guest kernel.

mod files;
mod guest;
mod isolation;
mod names;
mod session;
