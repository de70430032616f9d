//! Templates: booted machines from which sandboxes start. [`vmm::machine::template`] has the format of their files.

mod maker;
mod store;

pub(crate) use self::maker::{MEMORY_MIB, MakeError, NETWORK_SLOTS, make, make_for_later, make_in_background};
pub(crate) use self::store::{TemplateStore, TemplateStoreError, find, name};
