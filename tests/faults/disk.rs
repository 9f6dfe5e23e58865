//! A disk that is full: a small tmpfs in a mount namespace of its own, which a test fills from
//! outside.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use safelight_testing::{
    audit::{Audit, Database, Ledger},
    client::{Client, TestClient as _, accepted},
    pictures,
    server::{Server, owned, safelight},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::{binary, eventually};

/// Mounts the disk over the data folder, then becomes the server: the same process all along.
const MOUNT: &str = r#"mount -t tmpfs -o size=24m tmpfs "$SAFELIGHT_DATA_DIR" && exec "$0" serve"#;

/// `safelight serve` on a small disk, and the way there from outside its namespace.
struct Disk {
    server: Server,
    folder: PathBuf,
    _data: TempDir,
}

impl Disk {
    fn start() -> Result<Self> {
        let data = TempDir::new()?;
        let env = owned(&[
            ("SAFELIGHT_DATA_DIR", &data.path().to_string_lossy()),
            ("SAFELIGHT_LISTEN", "127.0.0.1:0"),
            ("SAFELIGHT_MAX_ATTEMPTS", "100"),
            ("SAFELIGHT_BACKOFF_BASE_MS", "50"),
            ("SAFELIGHT_BACKOFF_CAP_MS", "1000"),
            ("SAFELIGHT_STAGED_GRACE_MS", "1000"),
        ]);
        let root = fs::metadata("/proc/self")?.uid() == 0;
        let mut command = Command::new("unshare");
        command.arg(if root { "-m" } else { "-rm" }).args(["sh", "-c", MOUNT]).arg(binary());
        // For its clean environment.
        let clean = safelight(binary(), ["serve"], &env);
        for (key, value) in clean.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        let server = Server::start(command)?;
        let inside = data.path().strip_prefix("/").context("an absolute path")?;
        let folder = Path::new(&format!("/proc/{}/root", server.id())).join(inside);
        Ok(Self { server, folder, _data: data })
    }

    /// Writes a file until nothing more goes in, then leaves `spare` bytes free again.
    fn fill(&self, spare: u64) -> Result<()> {
        let mut file = File::create(self.folder.join("ballast"))?;
        for block in [64 * 1024, 4096] {
            let zeros = vec![0; block];
            while file.write_all(&zeros).is_ok() {}
        }
        file.set_len(file.metadata()?.len().saturating_sub(spare))?;
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.folder.join("ballast"))?)
    }

    /// An audit of a copy, since SQLite finds no file behind the links of `/proc`. To be made when
    /// all is quiet.
    fn copied_audit(&self, copy: &Path) -> Result<Audit<'static>> {
        let copied = Command::new("cp").arg("-a").arg(&self.folder).arg(copy).status()?;
        ensure!(copied.success(), "cannot copy the disk");
        let folder = copy.join(self.folder.file_name().context("a name")?);
        Ok(Audit {
            database: Database::Sqlite(folder.join("safelight.db")),
            blobs: folder.join("blobs"),
            broker: None,
        })
    }
}

/// Promise: a full disk is answered with 507 or 503 and a time to come back, never with a 500;
/// nothing half-written stays, what was accepted is kept, and all goes on when there is space.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_recovers() -> Result<()> {
    let disk = block_in_place(Disk::start)?;
    let client = Client::new(disk.server.url())?;
    let (ledger, photo) = (Ledger::default(), pictures::jpeg(320, 240, 1)?);
    let mut refused = [0_u32; 2];
    // From nothing left at all to room for some uploads: with little room it is the database that
    // finds none. A few uploads first, so that there is a write-ahead log to go on with.
    let spares: Vec<u64> = (0..16).map(|step| step * 24 * 1024).collect();
    for (number, spare) in (0..).zip(std::iter::once(u64::MAX).chain(spares)) {
        if spare < u64::MAX {
            disk.fill(spare)?;
        }
        for turn in 0..4 {
            let body = pictures::with_comment(&photo, &format!("{number} {turn}"));
            let key = format!("key-{number}-{turn}");
            let headers: &[_] = if turn % 2 == 0 { &[] } else { &[("Idempotency-Key", &*key)] };
            let answer = client.post_image(body.clone(), headers).await?;
            match answer.status() {
                StatusCode::ACCEPTED => ledger.record(&accepted(answer).await?, &body)?,
                StatusCode::INSUFFICIENT_STORAGE => {
                    is_a_patient_problem(&answer)?;
                    refused[0] += 1;
                }
                StatusCode::SERVICE_UNAVAILABLE => {
                    is_a_patient_problem(&answer)?;
                    refused[1] += 1;
                }
                status => anyhow::bail!("{status}: {}", answer.text().await?),
            }
        }
        client.bytes("/livez").await?;
    }
    ensure!(refused[0] > 0, "the disk was never full");
    eprintln!("refused with 507: {}, with 503: {}", refused[0], refused[1]);

    disk.free()?;
    let late = pictures::with_comment(&photo, "late");
    eventually("uploads are accepted again", async || {
        let answer = client.post_image(late.clone(), &[]).await?;
        let fine = answer.status() == StatusCode::ACCEPTED;
        if fine {
            ledger.record(&accepted(answer).await?, &late)?;
        }
        Ok(fine)
    })
    .await?;
    for entry in ledger.uploads() {
        let task = json!({ "id": entry.task.parse::<uuid::Uuid>()? });
        client.finished(&task).await.with_context(|| disk.server.output())?;
    }
    // Messages that were published while their rows could not be removed are published once more.
    let mut balanced = None;
    eventually("the audit of a copy is clean", async || {
        let copy = TempDir::new()?;
        // Files may vanish under its hands while it is not quiet yet.
        let Ok(audit) = disk.copied_audit(copy.path()) else { return Ok(false) };
        let report = audit.run_within(&ledger, Duration::ZERO).await?;
        let clean = report.is_clean();
        balanced = Some(report);
        Ok(clean)
    })
    .await
    .with_context(|| format!("{balanced:#?}"))?;
    let (report, output) = (balanced.unwrap_or_default(), disk.server.output());
    assert_eq!(report.tasks, report.accepted, "what was refused is not there");
    let lines = output.lines().filter(|l| l.contains(" WARN ") || l.contains("ERROR ")).count();
    eprintln!("lines of trouble: {lines}");
    Ok(())
}

fn is_a_patient_problem(answer: &reqwest::Response) -> Result<()> {
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    ensure!(header("content-type") == Some("application/problem+json"), "{answer:?}");
    ensure!(header("retry-after").is_some(), "{answer:?}");
    Ok(())
}
