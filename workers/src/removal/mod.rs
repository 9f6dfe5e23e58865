//! Removes bytes permanently: of cancelled uploads, of deleted images, and unreferenced ones.

mod error;
mod guard;
mod purge;
mod quarantine;
mod remover;

pub(crate) use self::{
    error::RemovalError,
    guard::InstallationGuard,
    purge::Purger,
    quarantine::{Quarantine, by_blob, references, refers_to},
    remover::Remover,
};
