//! Decisions that callers make one after the other.

use safelight_domain::Owner;

/// A decision that no two transactions make at the same time.
#[derive(Debug, Clone, Copy)]
pub enum Exclusive<'a> {
    /// What counts towards the quota of one owner.
    Quota(&'a Owner),
    /// Which keys for signed URLs an owner has.
    SigningKeys(&'a Owner),
    /// Which pictures imports create.
    Imports,
}
