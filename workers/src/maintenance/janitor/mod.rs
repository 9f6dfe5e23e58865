//! The janitor deletes bytes that nothing refers to: of uploads that were interrupted between storing and
//! recording them ([`staged`]), of cancelled uploads ([`discarded`]), of interrupted removals ([`trash`]), of
//! killed writers ([`unfinished`]), and what collections of garbage moved to the quarantine ([`quarantine`]).

pub(crate) mod discarded;
mod period;
pub(crate) mod quarantine;
pub(crate) mod staged;
pub(crate) mod trash;
pub(crate) mod unfinished;
