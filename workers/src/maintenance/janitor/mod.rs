//! The janitor deletes bytes that nothing refers to: of uploads that were interrupted between storing and
//! recording them ([`staged`]), of cancelled uploads ([`discarded`]), and of interrupted removals
//! ([`trash`]).

pub(crate) mod discarded;
mod period;
pub(crate) mod staged;
pub(crate) mod trash;
