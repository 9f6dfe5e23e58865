//! What removes bytes permanently, beside the crate `removal`: the quarantine of unreferenced ones, and purges of proxies.

mod purge;
mod quarantine;

pub(crate) use self::{
    purge::{PurgeError, Purger},
    quarantine::{Quarantine, by_blob, references, refers_to},
};
