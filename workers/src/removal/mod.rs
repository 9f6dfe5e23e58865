//! Removes bytes permanently: of cancelled uploads, of deleted images, and unreferenced ones.

mod error;
mod purge;
mod remover;

pub(crate) use self::{error::RemovalError, purge::Purger, remover::Remover};
