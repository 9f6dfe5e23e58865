//! The janitor: bytes that nothing refers to. Uploads that died between storing their bytes and
//! recording them leave some ([`staged`]), and so do cancelled ones ([`discarded`]) and removals that
//! were cut off ([`trash`]).

pub(crate) mod discarded;
mod period;
pub(crate) mod staged;
pub(crate) mod trash;
