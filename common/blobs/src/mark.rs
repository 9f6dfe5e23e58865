//! The mark of the installation that a store belongs to.
//!
//! The object [`MARK`] is written once, when an installation takes an empty store. A volume that is not mounted, an
//! emptied bucket, a wrong prefix and the store of another installation do not have it. So whatever depends on an
//! object being absent asks for the mark first: "not found" is only believed of the installation's own store.
//! (`MinIO` and Ceph refuse a drive without its format file for the same reason.)

use std::os::unix::fs::MetadataExt;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path};
use safelight_domain::InstallationId;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{BlobError, BlobKey, Blobs, WrongStore, owner::Owner, shared_look::SharedLook};
use crate::{
    blocking::blocking_steps,
    store::{CLOCK, PROBES},
    time_limits::FIRST_BYTE,
    trash::TRASH,
    walk::QUARANTINE,
};

/// The object that names the installation: JSON, see [`Mark`].
const MARK: &str = "installation.json";

/// The object with the database's generation, in decimal digits.
const GENERATION: &str = "generation";

/// What the root of a store contains besides bytes.
const OWN: [&str; 4] = [MARK, GENERATION, CLOCK, PROBES];

/// The content of [`MARK`]. Later releases may add fields.
#[derive(Serialize, Deserialize)]
struct Mark {
    installation: InstallationId,
}

impl Blobs {
    /// The same store, which from now on has to have the mark of `installation`.
    #[must_use]
    pub fn of_installation(mut self, installation: InstallationId) -> Self {
        self.owner = Some(Owner { installation, look: SharedLook::default() });
        self
    }

    /// The installation whose mark the store has; `None` if it has no mark.
    pub async fn read_mark(&self) -> Result<Option<InstallationId>, BlobError> {
        Ok(self.read_small(MARK).await?.map(|bytes| parse(&bytes)).transpose()?)
    }

    /// Marks the store as that of `installation`. Fails if it has the mark of another one.
    pub async fn mark(&self, installation: InstallationId) -> Result<(), BlobError> {
        match self.read_mark().await? {
            Some(found) if found != installation => return Err(WrongStore::Foreign(found).into()),
            Some(_) => return Ok(()),
            None => self.create_mark(installation).await?,
        }
        // Another installation may have taken the store at the same time.
        match self.read_mark().await? {
            Some(found) if found == installation => Ok(()),
            Some(found) => Err(WrongStore::Foreign(found).into()),
            None => Err(WrongStore::Unmarked.into()),
        }
    }

    /// Writes the mark unless there is one. A store that cannot do that in one step replaces it.
    async fn create_mark(&self, installation: InstallationId) -> Result<(), BlobError> {
        let options = PutOptions::from(PutMode::Create);
        let created = self.store.put_opts(&Path::from(MARK), mark(installation), options).await;
        match created {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(_) => self.replace_mark(installation).await,
        }
    }

    /// Marks the store as that of `installation`, whatever mark it has.
    pub async fn replace_mark(&self, installation: InstallationId) -> Result<(), BlobError> {
        self.store.put(&Path::from(MARK), mark(installation)).await?;
        Ok(())
    }

    /// Whether this is the installation's own store, by a look at its mark that begins after this call. Concurrent
    /// callers share looks. Always true for a store without [`Blobs::of_installation`].
    pub async fn confirm(&self) -> Result<(), BlobError> {
        let Some(owner) = &self.owner else { return Ok(()) };
        owner.look.after_now(self.look_at_mark(owner.installation)).await
    }

    async fn look_at_mark(&self, installation: InstallationId) -> Result<(), BlobError> {
        if let Some(folder) = self.folder() {
            let look = blocking_steps(move || confirm_folder(&folder, Some(installation)));
            return timeout(FIRST_BYTE, look).await.map_err(|_| BlobError::Late)?;
        }
        is_of(installation, self.read_mark().await?)
    }

    /// The answer of the store; "not found" only if this is the installation's own store.
    pub(super) async fn believe<T>(
        &self,
        answer: Result<T, object_store::Error>,
    ) -> Result<T, BlobError> {
        let answer = answer.map_err(BlobError::from);
        if matches!(answer, Err(BlobError::NotFound)) {
            self.confirm().await?;
        }
        answer
    }

    /// Whether nothing is stored but what Safelight writes for itself. Anything else may have another owner.
    pub async fn is_empty(&self) -> Result<bool, BlobError> {
        let mut objects = self.store.list(None);
        while let Some(object) = objects.try_next().await? {
            let first = object.location.parts().next();
            if !first.is_some_and(|first| OWN.contains(&first.as_ref())) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The generation that [`Blobs::raise_generation`] wrote last; 0 if it never did.
    pub async fn generation(&self) -> Result<u64, BlobError> {
        let bytes = self.read_small(GENERATION).await?.unwrap_or_default();
        Ok(std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// Writes the database's generation beside the bytes. A higher one stays: it shows that the database is an older
    /// copy.
    pub async fn raise_generation(&self, generation: u64) -> Result<(), BlobError> {
        if generation <= self.generation().await? {
            return Ok(());
        }
        let text = PutPayload::from(generation.to_string());
        self.store.put(&Path::from(GENERATION), text).await?;
        Ok(())
    }

    /// A small object without a key; `None` if it does not exist.
    async fn read_small(&self, path: &str) -> Result<Option<Bytes>, BlobError> {
        match self.read_path(&Path::from(path)).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(BlobError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// [`Blobs::confirm`] for a local directory. Waits for the disk.
pub(super) fn confirm_folder(
    folder: &std::path::Path,
    installation: Option<InstallationId>,
) -> Result<(), BlobError> {
    let Some(installation) = installation else { return Ok(()) };
    divided(folder).map_or(Ok(()), |name| Err(WrongStore::Divided(name)))?;
    match std::fs::read(folder.join(MARK)) {
        Ok(bytes) => is_of(installation, Some(parse(&bytes)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => is_of(installation, None),
        Err(error) => Err(error.into()),
    }
}

fn parse(mark: &[u8]) -> Result<InstallationId, WrongStore> {
    let mark: Mark = serde_json::from_slice(mark).map_err(|_| WrongStore::Damaged)?;
    Ok(mark.installation)
}

fn is_of(installation: InstallationId, found: Option<InstallationId>) -> Result<(), BlobError> {
    match found {
        Some(found) if found == installation => Ok(()),
        Some(found) => Err(WrongStore::Foreign(found).into()),
        None => Err(WrongStore::Unmarked.into()),
    }
}

/// The content of the object [`MARK`].
fn mark(installation: InstallationId) -> PutPayload {
    // An id is always valid JSON.
    serde_json::to_vec(&Mark { installation }).unwrap_or_default().into()
}

/// A folder of a local store that is on another file system than the store.
fn divided(store: &std::path::Path) -> Option<&'static str> {
    let device = |path: &std::path::Path| std::fs::metadata(path).ok().map(|found| found.dev());
    let of_store = device(store)?;
    let folders = [BlobKey::INCOMING, BlobKey::BLOBS, BlobKey::RENDITIONS, TRASH, QUARANTINE];
    folders
        .into_iter()
        .find(|name| device(&store.join(name)).is_some_and(|found| found != of_store))
}
