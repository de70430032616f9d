//! Tests of the server with raw requests, without a guest kernel.

mod files;
mod guest;
mod isolation;
mod kernel_views;
mod names;
mod session;
