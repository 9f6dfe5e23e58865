//! Rules for the structure of the code: which crate may depend on which, which module on which layer, and no
//! cycle of files in any crate.

mod crates;
mod modules;
mod sources;
