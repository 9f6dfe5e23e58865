//! Whose store it is meant to be.

use safelight_domain::InstallationId;

use super::shared_look::SharedLook;

/// The installation that a store has to belong to.
#[derive(Clone)]
pub(super) struct Owner {
    pub installation: InstallationId,
    /// Looks at the mark.
    pub look: SharedLook,
}
