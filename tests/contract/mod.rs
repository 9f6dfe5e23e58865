//! The contracts of the seams, each run on both of its backends.

pub mod broker;
