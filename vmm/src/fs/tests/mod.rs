//! Tests of the server with a raw client: no kernel in the way.

mod files;
mod guest;
mod hostile;
mod names;
