//! Whether garbage may be collected: not with a database that knows less than what was stored, and not in the
//! store of somebody else.

use std::sync::Arc;

use safelight_blobs::{BlobError, Blobs};
use safelight_domain::{GcRefusal, GcSurvey};
use safelight_removal::InstallationGuard;
use safelight_store::Installations;

use super::error::BackfillError;

/// Asks the store and the database who they are.
#[derive(Clone)]
pub(super) struct Safeguards {
    blobs: Blobs,
    installations: Arc<dyn Installations>,
    guard: InstallationGuard,
}

impl Safeguards {
    pub fn new(
        blobs: Blobs,
        installations: Arc<dyn Installations>,
        guard: InstallationGuard,
    ) -> Self {
        Self { blobs, installations, guard }
    }

    /// Why nothing may be removed now, if so. Ask it before each step: a volume can be unmounted and a database
    /// replaced at any time.
    pub async fn refusal(
        &self,
        survey: &GcSurvey,
        force: bool,
    ) -> Result<Option<GcRefusal>, BackfillError> {
        if let Some(refusal) = self.wrong_store().await? {
            return Ok(Some(refusal));
        }
        if force {
            return Ok(None);
        }
        if survey.originals.objects > 0 && !self.installations.installation().await?.has_images {
            return Ok(Some(GcRefusal::NoImages(survey.originals)));
        }
        let may_remove = self.guard.may_remove_unknown().await?;
        Ok((!may_remove).then_some(GcRefusal::OlderDatabase))
    }

    /// The refusal to touch a store that is not this installation's.
    pub async fn wrong_store(&self) -> Result<Option<GcRefusal>, BackfillError> {
        match self.blobs.confirm().await {
            Ok(()) => Ok(None),
            Err(BlobError::WrongStore(reason)) => {
                Ok(Some(GcRefusal::WrongStore(reason.to_string())))
            }
            Err(error) => Err(error.into()),
        }
    }
}
