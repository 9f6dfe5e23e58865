//! Removes bytes that images may share, for API nodes and workers alike (ADR 4).

mod error;
mod guard;
mod remover;

pub use self::{error::RemovalError, guard::InstallationGuard, remover::Remover};
