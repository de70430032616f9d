//! Templates: a machine that has booted and was stopped, in a file from which other machines start.
//!
//! The machine that makes a template has its memory in the template's file. When its guest is ready, the vCPU and the devices are
//! stopped and their state is written to the same file. A machine that starts from the template maps the memory privately: it
//! shares the pages that it does not change with all other machines of the template.

mod file;
mod state;

pub(in crate::machine) use file::MEMORY_OFFSET;
pub use file::{Template, TemplateError, seal, write_state};
pub use state::{DeviceStates, MachineState, Shape};
