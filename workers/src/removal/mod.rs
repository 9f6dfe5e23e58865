//! Removing bytes for good: of cancelled uploads, of deleted images, and of what nothing refers to.

mod error;
mod purge;
mod remover;

pub(crate) use self::{error::RemovalError, purge::Purger, remover::Remover};
