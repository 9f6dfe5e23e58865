//! A folder of blobs that is not the one it should be.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::{
    outcome::{Outcome, Setting},
    site::{self, CLIENTS, ENV},
};
use crate::{
    audit::{Audit, Database},
    client::Client,
    load::Load,
    s3::S3,
    server::{Server, owned},
    test_server::TestServer,
    volume::Volume,
};

/// The full length of these outages.
const OUTAGE: Duration = Duration::from_mins(1);

/// How long a second installation may do harm, if it starts: longer than the grace time of staged bytes.
const HARM: Duration = Duration::from_secs(6);

/// A server whose blobs are on a volume, and whose database is not.
struct OnVolume {
    volume: Volume,
    data: TempDir,
    server: Server,
    client: Client,
}

impl OnVolume {
    fn start(setting: &Setting) -> Result<Self> {
        let (volume, data) = (Volume::new()?, TempDir::new()?);
        let blobs = format!("file://{}", volume.mount_point().display());
        let mut env = owned(ENV);
        env.extend(owned(&[
            ("SAFELIGHT_DATA_DIR", &data.path().to_string_lossy()),
            ("SAFELIGHT_LISTEN", "127.0.0.1:0"),
            ("SAFELIGHT_BLOB_URL", &blobs),
        ]));
        let server = volume.serve(&setting.binary, &env)?;
        let client = Client::new(server.url())?;
        Ok(Self { volume, data, server, client })
    }

    /// Runs a load, a fault for some time, and an audit.
    async fn run(
        &self,
        outage: Duration,
        begin: impl Fn(&Self) -> Result<()>,
        end: impl Fn(&Self) -> Result<()>,
    ) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let load = Load::start(CLIENTS, &[self.server.url()])?;
        load.wait_for_more(10).await?;
        let backlog = site::backlog(&self.client).await?;
        block_in_place(|| begin(self))?;
        let noticed = site::is_noticed(&self.client, outage).await;
        outcome.expect(noticed, "/readyz says that the blob store is unavailable");
        block_in_place(|| end(self))?;
        let result = site::recover(&self.client, load, &mut outcome).await?;
        result.ledger.append(&backlog);
        site::audit_copies(&result.ledger, &mut outcome, || {
            let copy = TempDir::new()?;
            let blobs = copy.path().join("blobs");
            block_in_place(|| self.volume.copy_files(&self.server, &blobs))?;
            let database = Database::Sqlite(self.data.path().join("safelight.db"));
            Ok((copy, Audit { database, blobs, broker: None }))
        })
        .await?;
        Ok(outcome)
    }
}

/// The volume is unmounted while the server runs. What it finds instead is a folder to which it can write.
pub(super) async fn unmounted(setting: Setting) -> Result<Outcome> {
    let site = block_in_place(|| OnVolume::start(&setting))?;
    let unmount = |site: &OnVolume| site.volume.unmount(&site.server);
    let mount = |site: &OnVolume| site.volume.mount(&site.server);
    let mut outcome = site.run(setting.outage(OUTAGE), unmount, mount).await?;
    for hidden in files(&site.volume.mount_point())? {
        outcome.left.push(format!("{hidden} below the mount point"));
    }
    Ok(outcome)
}

/// The kernel makes a disk with errors read-only: from then on everything that writes fails.
pub(super) async fn read_only(setting: Setting) -> Result<Outcome> {
    let site = block_in_place(|| OnVolume::start(&setting))?;
    let read_only = |site: &OnVolume| site.volume.set_read_only(&site.server, true);
    let writable = |site: &OnVolume| site.volume.set_read_only(&site.server, false);
    site.run(setting.outage(OUTAGE), read_only, writable).await
}

/// Another installation is started on the folder of one that has accepted uploads and is down.
pub(super) async fn second_on_folder(setting: Setting) -> Result<Outcome> {
    let shared = TempDir::new()?;
    let url = format!("file://{}", shared.path().display());
    second_installation(&setting, shared.path(), &[("SAFELIGHT_BLOB_URL", &url)]).await
}

/// The same with a bucket.
pub(super) async fn second_on_bucket(setting: Setting) -> Result<Outcome> {
    let s3 = block_in_place(|| S3::start("images"))?;
    let (url, s3_env) = (s3.url(), s3.env());
    let mut env: Vec<(&str, &str)> = s3_env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    env.push(("SAFELIGHT_BLOB_URL", &url));
    second_installation(&setting, &s3.bucket_folder(), &env).await
}

async fn second_installation(
    setting: &Setting,
    blobs: &Path,
    env: &[(&str, &str)],
) -> Result<Outcome> {
    // What the second one takes for abandoned is removed at once.
    let grace: &[_] = &[("SAFELIGHT_STAGED_GRACE_MS", "1000")];
    let env = [ENV, env, grace].concat();
    let first = TestServer::new(&setting.binary, &env)?;
    let second = TestServer::new(&setting.binary, &env)?;
    let ledger = {
        let (mut server, client) = first.start(&[])?;
        let ledger = site::backlog(&client).await?;
        block_in_place(|| server.kill())?;
        ledger
    };
    let mut outcome = Outcome::default();
    match second.start(&[]) {
        Ok(_running) => {
            outcome.expect(false, "a second installation does not start");
            tokio::time::sleep(HARM).await;
        }
        Err(error) => {
            let says_why = format!("{error:#}").contains("installation");
            outcome.expect(says_why, "the second installation says why it does not start");
        }
    }
    let (_server, _client) = first.start(&[])?;
    let audit = Audit { blobs: blobs.to_owned(), ..first.audit() };
    outcome.add(audit.run(&ledger).await?);
    Ok(outcome)
}

/// The files of a folder and its subfolders.
fn files(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}
