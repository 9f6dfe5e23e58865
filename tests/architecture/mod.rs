//! How the code is cut: which crate may depend on which, and no circle of files in any crate.

mod crates;
mod modules;
mod sources;
