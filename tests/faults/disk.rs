//! A full disk: a small tmpfs in its own mount namespace, which the test fills from outside.

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
    audit::{Audit, Database, Ledger, Report},
    client::{Client, TestClient as _, accepted},
    pictures,
    server::{Server, owned, safelight},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::{binary, eventually};

/// Mounts the disk over the data folder, then replaces the shell by the server.
const MOUNT: &str = r#"mount -t tmpfs -o size=24m tmpfs "$SAFELIGHT_DATA_DIR" && exec "$0" serve"#;

/// `safelight serve` on a small disk, and the path of the disk from outside the namespace.
struct Disk {
    server: Server,
    folder: PathBuf,
    _data: TempDir,
}

impl Disk {
    fn start(min_free_bytes: u64) -> Result<Self> {
        let data = TempDir::new()?;
        let env = owned(&[
            ("SAFELIGHT_MIN_FREE_BYTES", &min_free_bytes.to_string()),
            ("SAFELIGHT_DATA_DIR", &data.path().to_string_lossy()),
            ("SAFELIGHT_LISTEN", "127.0.0.1:0"),
            ("SAFELIGHT_MAX_ATTEMPTS", "100"),
            ("SAFELIGHT_BACKOFF_BASE_MS", "50"),
            ("SAFELIGHT_BACKOFF_CAP_MS", "1000"),
            ("SAFELIGHT_STAGED_GRACE_MS", "1000"),
            ("SAFELIGHT_RECOVERY_GRACE_MS", "1000"),
        ]);
        let root = fs::metadata("/proc/self")?.uid() == 0;
        let mut command = Command::new("unshare");
        command.arg(if root { "-m" } else { "-rm" }).args(["sh", "-c", MOUNT]).arg(binary());
        // Start with the same clean environment as other tests.
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

    /// Fills the disk with a file, then frees `spare` bytes.
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

    /// The size of all blobs and renditions.
    fn stored_bytes(&self) -> Result<u64> {
        let found = Command::new("du").arg("-sb").arg(self.folder.join("blobs")).output()?;
        let text = String::from_utf8_lossy(&found.stdout);
        text.split_whitespace().next().context("a number")?.parse().context("bytes")
    }

    /// An audit of a copy, because SQLite cannot open files behind the links of `/proc`. The copy is
    /// consistent only while nothing changes.
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

    /// Waits until the audit of a copy is clean. Messages whose outbox rows could not be removed are published
    /// again, so the audit may need some time.
    async fn wait_for_clean_audit(&self, ledger: &Ledger) -> Result<Report> {
        let mut last_report = None;
        eventually("the audit of a copy is clean", async || {
            let copy = TempDir::new()?;
            // Copying fails if a file is deleted meanwhile.
            let Ok(audit) = self.copied_audit(copy.path()) else { return Ok(false) };
            let report = audit.run_within(ledger, Duration::ZERO).await?;
            let clean = report.is_clean();
            last_report = Some(report);
            Ok(clean)
        })
        .await
        .with_context(|| format!("{last_report:#?}"))?;
        last_report.context("no audit ran")
    }
}

/// Promise: while somebody else's file fills the disk, uploads are answered with 507 and `Retry-After`, whatever
/// SQLite calls it, and reads work. Nothing half-written stays, accepted uploads are kept, and work continues when
/// there is space.
#[tokio::test(flavor = "multi_thread")]
async fn full_disk_rejects_uploads_until_space_is_free() -> Result<()> {
    let disk = block_in_place(|| Disk::start(0))?;
    let client = Client::new(disk.server.url())?;
    let (ledger, photo) = (Ledger::default(), pictures::jpeg(320, 240, 1)?);
    let stored = client.finished(&client.upload(photo.clone()).await?).await?;
    let path = stored["image"]["url"].as_str().context("a URL")?;
    ledger.record(&stored, &photo)?;
    let mut rejected = 0;
    // From no free space to space for some uploads. With little space, the database is the part that fails.
    // The first uploads run on an empty disk, so that the write-ahead log exists.
    let spares: Vec<u64> = (0..16).map(|step| step * 24 * 1024).collect();
    for (number, spare) in (0..).zip(std::iter::once(u64::MAX).chain(spares)) {
        if spare < u64::MAX {
            disk.fill(spare)?;
        }
        if spare == 0 {
            assert_blob_store_is_full(&client).await?;
        }
        for turn in 0..4 {
            let body = pictures::with_comment(&photo, &format!("{number} {turn}"));
            let key = format!("key-{number}-{turn}");
            let headers: &[_] = if turn % 2 == 0 { &[] } else { &[("Idempotency-Key", &*key)] };
            let answer = client.post_image(body.clone(), headers).await?;
            match answer.status() {
                StatusCode::ACCEPTED => ledger.record(&accepted(answer).await?, &body)?,
                StatusCode::INSUFFICIENT_STORAGE => {
                    assert_problem_with_retry_after(&answer)?;
                    rejected += 1;
                }
                status => anyhow::bail!("{status}: {}", answer.text().await?),
            }
        }
        assert_eq!(client.bytes(path).await?, photo);
        client.bytes("/v1/tasks").await?;
    }
    ensure!(rejected > 0, "the disk was never full");
    eprintln!("rejected with 507: {rejected}");

    disk.free()?;
    let late = pictures::with_comment(&photo, "late");
    eventually("uploads are accepted again", async || {
        let answer = client.post_image(late.clone(), &[]).await?;
        let is_accepted = answer.status() == StatusCode::ACCEPTED;
        if is_accepted {
            ledger.record(&accepted(answer).await?, &late)?;
        }
        Ok(is_accepted)
    })
    .await?;
    for entry in ledger.uploads() {
        let task = json!({ "id": entry.task.parse::<uuid::Uuid>()? });
        client.finished(&task).await.with_context(|| disk.server.output())?;
    }
    let (report, output) = (disk.wait_for_clean_audit(&ledger).await?, disk.server.output());
    assert_eq!(report.tasks, report.accepted, "a rejected upload has a task");
    let lines = output.lines().filter(|l| l.contains(" WARN ") || l.contains("ERROR ")).count();
    eprintln!("warnings and errors: {lines}");
    Ok(())
}

/// Promise: uploads stop while there is still space for the database, so that images can be deleted; that makes
/// room for uploads, and for the renditions of those that were accepted.
#[tokio::test(flavor = "multi_thread")]
async fn deletions_make_room_on_disk_that_uploads_filled() -> Result<()> {
    // More than a tenth of the disk, which is the limit.
    let disk = block_in_place(|| Disk::start(1 << 30))?;
    let client = Client::new(disk.server.url())?;
    let mut uploads = Vec::new();
    // The small ones fill what the large ones leave.
    for photo in [pictures::jpeg(1600, 1200, 1)?, pictures::jpeg(320, 240, 1)?] {
        let rejection = loop {
            let body = pictures::with_comment(&photo, &uploads.len().to_string());
            let answer = client.post_image(body.clone(), &[]).await?;
            if answer.status() != StatusCode::ACCEPTED {
                break answer;
            }
            uploads.push((accepted(answer).await?, body));
        };
        assert_eq!(rejection.status(), StatusCode::INSUFFICIENT_STORAGE);
        assert_problem_with_retry_after(&rejection)?;
        assert_eq!(rejection.json::<Value>().await?["code"], "storage_full");
    }
    let readiness: Value = client.get("/readyz").await?.json().await?;
    assert_eq!(readiness["parts"]["blobs"], "down", "{readiness:#}");
    assert_eq!(readiness["parts"]["database"], "up", "{readiness:#}");

    let kept = uploads.split_off(uploads.len() / 2);
    let (deleted, mut uploads) = (uploads, kept);
    let used = disk.stored_bytes()?;
    let mut deletions = Vec::new();
    for (task, _) in &deleted {
        let image = task["image"]["id"].as_str().context("an id")?;
        deletions.push(client.delete_image(image).await?);
    }
    for deletion in deletions {
        let deletion = client.finished(&deletion).await?;
        assert_eq!(deletion["status"], "succeeded", "{deletion:#}");
    }
    let bytes: u64 = deleted.iter().map(|(_, body)| body.len() as u64).sum();
    // Renditions of the others may have been written meanwhile.
    ensure!(disk.stored_bytes()? + bytes / 2 < used, "deletions made no room");

    let late = pictures::jpeg(1600, 1200, 2)?;
    eventually("uploads are accepted again", async || {
        let answer = client.post_image(late.clone(), &[]).await?;
        let is_accepted = answer.status() == StatusCode::ACCEPTED;
        if is_accepted {
            uploads.push((accepted(answer).await?, late.clone()));
        }
        Ok(is_accepted)
    })
    .await?;
    for (task, body) in &uploads {
        let task = client.finished(task).await.with_context(|| disk.server.output())?;
        assert_eq!(task["status"], "succeeded", "{task:#}");
        let path = task["image"]["url"].as_str().context("a URL")?;
        assert_eq!(client.bytes(path).await?, *body);
    }
    Ok(())
}

/// The blob store has no space for this upload, whether the database has some or not.
async fn assert_blob_store_is_full(client: &Client) -> Result<()> {
    let answer = client.post_image(pictures::jpeg(1600, 1200, 2)?, &[]).await?;
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    assert_problem_with_retry_after(&answer)
}

fn assert_problem_with_retry_after(answer: &reqwest::Response) -> Result<()> {
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    ensure!(header("content-type") == Some("application/problem+json"), "{answer:?}");
    ensure!(header("retry-after").is_some(), "{answer:?}");
    Ok(())
}
