//! Backups as `docs/backup.md` describes them: the file of a stopped or idle server, `safelight backup` while uploads
//! continue, and `safelight restore`.

mod renditions;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use safelight_testing::{
    client::{Client, TestClient as _},
    load::Load,
    pictures,
    postgres::{self, Postgres},
    s3::S3,
    server::{Finished, Server, owned, run, safelight},
    wait::{LIMIT, eventually},
};
use serde_json::Value;
use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use super::{binary, embedded_env, serve};

/// How long a command may take on a busy machine.
const COMMAND_LIMIT: Duration = Duration::from_mins(2);

/// An accepted upload: its task and its bytes.
type Upload = (Value, Vec<u8>);

type Env = Vec<(String, String)>;

/// Runs a command of the program to its end.
async fn command(args: &[&str], env: &Env) -> Result<Finished> {
    let command = safelight(binary(), args, env);
    tokio::task::spawn_blocking(move || run(command, COMMAND_LIMIT)).await?
}

/// Runs a command with `--json`, and returns what it printed.
async fn report(args: &[&str], env: &Env) -> Result<Value> {
    let ended = command(&[args, &["--json"]].concat(), env).await?.success()?;
    Ok(serde_json::from_str(&ended.stdout)?)
}

/// Starts a server with these variables.
async fn start(env: &Env, more: &[(&str, &str)]) -> Result<(Server, Client)> {
    let mut command = safelight(binary(), ["serve"], env);
    command.envs(more.iter().copied());
    let server = tokio::task::spawn_blocking(move || Server::start(command)).await??;
    let client = Client::new(server.url())?;
    Ok((server, client))
}

/// Ends a server with SIGTERM, and waits until it has drained.
async fn stop(mut server: Server) -> Result<()> {
    tokio::task::spawn_blocking(move || {
        server.signal("TERM")?;
        anyhow::ensure!(server.wait(LIMIT)?.success(), "{}", server.output());
        anyhow::ensure!(server.output().contains("drained"), "{}", server.output());
        Ok(())
    })
    .await?
}

/// Uploads `count` pictures.
async fn upload(client: &Client, seeds: std::ops::Range<u64>) -> Result<Vec<Upload>> {
    let mut uploads = Vec::new();
    for seed in seeds {
        let body = pictures::jpeg(96, 64, seed)?;
        uploads.push((client.upload(body.clone()).await?, body));
    }
    Ok(uploads)
}

/// Waits until the tasks of all uploads have succeeded.
async fn finished(client: &Client, uploads: &[Upload]) -> Result<()> {
    for (task, _) in uploads {
        let ended = client.finished(task).await?;
        assert_eq!(ended["status"], "succeeded", "{ended:#}");
    }
    Ok(())
}

/// Compares the original of each upload with its bytes, and reads one of its renditions.
async fn readable(client: &Client, uploads: &[Upload]) -> Result<()> {
    for (task, body) in uploads {
        let image = task["image"]["id"].as_str().context("an image")?;
        let bytes = client.bytes(&format!("/images/{image}")).await;
        assert!(*bytes.with_context(|| image.to_owned())? == *body, "{image} has other bytes");
        assert!(!client.bytes(&format!("/images/{image}/small")).await?.is_empty());
    }
    Ok(())
}

/// The number of images in a copy of the database's file alone.
async fn images_in_copy(database: &Path) -> Result<i64> {
    number_in_copy(database, "select count(*) from images").await
}

/// The number of keys in a copy of the database's file alone.
async fn keys_in_copy(database: &Path) -> Result<i64> {
    number_in_copy(database, "select count(*) from api_keys").await
}

async fn number_in_copy(database: &Path, query: &'static str) -> Result<i64> {
    let folder = TempDir::new()?;
    let copy = folder.path().join("copy.db");
    fs::copy(database, &copy)?;
    let mut conn = SqliteConnectOptions::new().filename(&copy).connect().await?;
    Ok(sqlx::query_scalar(query).fetch_one(&mut conn).await?)
}

/// The objects of a backup below a folder.
fn objects(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(objects(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}

#[tokio::test]
async fn database_file_alone_is_complete_after_a_stop_and_when_idle() -> Result<()> {
    let data = TempDir::new()?;
    let (file, log) = (data.path().join("safelight.db"), data.path().join("safelight.db-wal"));
    let log_bytes = || fs::metadata(&log).map_or(0, |found| found.len());
    let server = serve(data.path()).await?;
    let client = Client::new(server.url())?;
    finished(&client, &upload(&client, 0..6).await?).await?;
    let mut idle = 0;
    eventually("the file of an idle server is complete", async || {
        // A heartbeat may come between the look and the copy; what it writes is not an image.
        if log_bytes() == 0 {
            idle = images_in_copy(&file).await?;
        }
        Ok(idle == 6)
    })
    .await?;
    finished(&client, &upload(&client, 6..9).await?).await?;
    stop(server).await?;
    assert_eq!(log_bytes(), 0, "the log was not emptied at the end");
    assert_eq!(images_in_copy(&file).await?, 9);

    // Commands that open the database leave it as complete.
    let env = embedded_env(data.path());
    command(&["keys", "create", "--owner", "a", "--scopes", "read"], &env).await?.success()?;
    assert_eq!(log_bytes(), 0, "the log was not emptied by a command");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_under_load_restores_what_was_accepted_before() -> Result<()> {
    let (data, place) = (TempDir::new()?, TempDir::new()?);
    let env = embedded_env(data.path());
    let to = place.path().join("backup").to_string_lossy().into_owned();
    // The first write job never ends: its upload is unfinished in every snapshot.
    let hanging = [("SAFELIGHT_FAIL_POINTS", "write.inspected=hang")];
    let (mut server, client) = start(&env, &hanging).await?;
    let unfinished = upload(&client, 0..1).await?;
    tokio::task::block_in_place(|| server.wait_for_output("fail point write.inspected", LIMIT))?;
    let first = upload(&client, 1..8).await?;
    finished(&client, &first).await?;

    let load = Load::start(3, &[server.url()])?;
    load.wait_for_more(5).await?;
    let made = report(&["backup", "--init", &to], &env).await?;
    assert_eq!(made["missing"]["count"], 0, "{made:#}");
    assert_eq!(made["present"], 0, "{made:#}");
    let second = upload(&client, 8..14).await?;
    load.wait_for_more(5).await?;
    let again = report(&["backup", &to, "--verify"], &env).await?;
    assert_eq!(again["missing"]["count"], 0, "{again:#}");
    // What was copied is not copied again, and is still good.
    assert!(again["present"].as_u64() >= Some(28), "7 pictures with 3 renditions: {again:#}");
    assert!(again["verified"].as_u64() >= Some(7), "{again:#}");
    load.stop().await?;
    tokio::task::block_in_place(|| server.kill())?;

    let all: Vec<Upload> = unfinished.iter().chain(&first).chain(&second).cloned().collect();
    let (restored, older) = (TempDir::new()?, TempDir::new()?);
    let target = embedded_env(restored.path());
    let report_of = report(&["restore", &to], &target).await?;
    assert_eq!(report_of["missing"]["count"], 0, "{report_of:#}");
    assert_eq!(report_of["snapshot"], again["snapshot"]);
    let (server, client) = start(&target, &[]).await?;
    // Also the one that was never finished on the old server.
    finished(&client, &all).await?;
    readable(&client, &all).await?;
    stop(server).await?;

    let name = made["snapshot"].as_str().context("a name")?;
    let target = embedded_env(older.path());
    report(&["restore", &to, "--at", name], &target).await?;
    let (_server, client) = start(&target, &[]).await?;
    let known: Vec<Upload> = unfinished.iter().chain(&first).cloned().collect();
    finished(&client, &known).await?;
    readable(&client, &known).await?;
    let later = second[0].0["image"]["id"].as_str().context("an image")?;
    assert!(client.bytes(&format!("/images/{later}")).await.is_err(), "from another time");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_and_bucket_are_backed_up_and_restored() -> Result<()> {
    let (s3, backups) = (S3::start("images")?, S3::start("backups")?);
    let folder = TempDir::new()?;
    let path = format!(
        "{}:{}",
        postgres::programs()?.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let mut env = s3.env();
    env.extend(
        backups.env().into_iter().map(|(key, value)| (format!("SAFELIGHT_BACKUP_{key}"), value)),
    );
    env.push(("PATH".to_owned(), path));
    env.extend(embedded_env(folder.path()));
    let at = |database: &str, blobs: &str| {
        let mut env = env.clone();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        env.push(pair("SAFELIGHT_DATABASE_URL", database));
        env.push(pair("SAFELIGHT_BLOB_URL", blobs));
        env
    };
    let old = at(&Postgres::fresh_database().await?, "s3://images/old");
    let hanging = [("SAFELIGHT_FAIL_POINTS", "write.inspected=hang")];
    let (mut server, client) = start(&old, &hanging).await?;
    let mut uploads = upload(&client, 0..1).await?;
    tokio::task::block_in_place(|| server.wait_for_output("fail point write.inspected", LIMIT))?;
    uploads.extend(upload(&client, 1..6).await?);
    finished(&client, &uploads[1..]).await?;
    let load = Load::start(2, &[server.url()])?;
    load.wait_for_more(3).await?;
    let made = report(&["backup", "--init", "s3://backups/nightly"], &old).await?;
    assert_eq!(made["missing"]["count"], 0, "{made:#}");
    load.stop().await?;
    let again = report(&["backup", "s3://backups/nightly"], &old).await?;
    assert!(again["present"].as_u64() >= Some(20), "{again:#}");
    tokio::task::block_in_place(|| server.kill())?;

    let database = Postgres::fresh_database().await?;
    let new = at(&database, "s3://images/new");
    let restored = report(&["restore", "s3://backups/nightly"], &new).await?;
    assert_eq!(restored["missing"]["count"], 0, "{restored:#}");
    let (server, client) = start(&new, &[]).await?;
    finished(&client, &uploads).await?;
    readable(&client, &uploads).await?;
    stop(server).await?;

    let occupied = command(&["restore", "s3://backups/nightly"], &new).await?;
    assert_eq!(occupied.code, Some(1), "{occupied:#?}");
    assert!(occupied.stderr.contains("is not empty"), "{occupied:#?}");
    let mut without = new.clone();
    without.push(("PATH".to_owned(), folder.path().to_string_lossy().into_owned()));
    let missing = command(&["backup", "s3://backups/nightly"], &without).await?;
    assert_eq!(missing.code, Some(1), "{missing:#?}");
    assert!(missing.stderr.contains("hint: install PostgreSQL's programs"), "{missing:#?}");
    assert!(!missing.stderr.contains("secret"), "{missing:#?}");
    Ok(())
}

#[tokio::test]
async fn damaged_bytes_are_reported_and_never_copied() -> Result<()> {
    let (data, place) = (TempDir::new()?, TempDir::new()?);
    let env = embedded_env(data.path());
    let to = place.path().to_string_lossy().into_owned();
    let server = serve(data.path()).await?;
    let client = Client::new(server.url())?;
    let uploads = upload(&client, 0..3).await?;
    finished(&client, &uploads).await?;
    let blobs = objects(&data.path().join("blobs/blobs"))?;
    let path_in = |root: &Path, blob: &Path| -> Result<PathBuf> {
        Ok(root.join(blob.strip_prefix(data.path().join("blobs"))?))
    };
    let spoil = |file: &Path| -> Result<()> {
        let mut bytes = fs::read(file)?;
        bytes[100] ^= 1;
        Ok(fs::write(file, bytes)?)
    };
    let name = |file: &Path| file.file_name().unwrap_or_default().to_string_lossy().into_owned();

    spoil(&blobs[0])?;
    let ended = command(&["backup", "--init", &to, "--json"], &env).await?;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    let made: Value = serde_json::from_str(&ended.stdout)?;
    assert_eq!((&made["damaged"]["count"], &made["missing"]["count"]), (&1.into(), &1.into()));
    assert!(ended.stderr.contains(&format!("damaged: blobs/{}", &name(&blobs[0])[..2])));
    assert!(!path_in(place.path(), &blobs[0])?.exists(), "a damaged blob was copied");
    assert!(path_in(place.path(), &blobs[1])?.exists(), "the others were not copied");

    // A copy that rots is found, and made good.
    spoil(&blobs[0])?;
    command(&["backup", &to], &env).await?.success()?;
    spoil(&path_in(place.path(), &blobs[1])?)?;
    command(&["backup", &to], &env).await?.success()?;
    let verified = report(&["backup", &to, "--verify"], &env).await?;
    assert_eq!((&verified["repaired"], &verified["verified"]), (&1.into(), &3.into()));

    // A store that rots is repaired by a restore beside it, which does not believe sizes.
    stop(server).await?;
    spoil(&blobs[2])?;
    let restored = report(&["restore", &to, "--force"], &env).await?;
    assert_eq!(
        (&restored["repaired"], &restored["missing"]["count"]),
        (&1.into(), &0.into()),
        "{restored:#}"
    );
    let (server, client) = start(&env, &[]).await?;
    readable(&client, &uploads).await?;
    stop(server).await?;
    // One that is damaged in both places is not reported as restored.
    spoil(&blobs[2])?;
    spoil(&path_in(place.path(), &blobs[2])?)?;
    let ended = command(&["restore", &to, "--force", "--json"], &env).await?;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    let restored: Value = serde_json::from_str(&ended.stdout)?;
    assert_eq!(restored["damaged_in_store"]["count"], 1, "{restored:#}");
    spoil(&path_in(place.path(), &blobs[2])?)?;

    // A copy that rots later is not restored.
    spoil(&path_in(place.path(), &blobs[2])?)?;
    let target = TempDir::new()?;
    let ended = command(&["restore", &to, "--json"], &embedded_env(target.path())).await?;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    let restored: Value = serde_json::from_str(&ended.stdout)?;
    assert_eq!(
        (&restored["damaged"]["count"], &restored["missing"]["count"]),
        (&1.into(), &1.into())
    );
    Ok(())
}

#[tokio::test]
async fn backup_and_restore_reject_wrong_places() -> Result<()> {
    let (data, other, place) = (TempDir::new()?, TempDir::new()?, TempDir::new()?);
    let (env, foreign) = (embedded_env(data.path()), embedded_env(other.path()));
    let to = place.path().to_string_lossy().into_owned();
    for (env, seed) in [(&env, 0), (&foreign, 10)] {
        let (server, client) = start(env, &[]).await?;
        finished(&client, &upload(&client, seed..seed + 2).await?).await?;
        stop(server).await?;
    }
    let rejected = async |args: &[&str], env: &Env, code: i32, why: &str| -> Result<()> {
        let ended = command(args, env).await?;
        assert_eq!(ended.code, Some(code), "{ended:#?}");
        assert!(ended.stderr.contains(why) && ended.stderr.contains("hint: "), "{ended:#?}");
        Ok(())
    };
    let inside = data.path().join("backup").to_string_lossy().into_owned();
    rejected(&["backup", &inside], &env, 2, "a part of the server's own data").await?;
    rejected(&["restore", &to], &env, 1, "no complete snapshot").await?;
    report(&["backup", "--init", &to], &env).await?;
    rejected(&["backup", &to], &foreign, 1, "another installation").await?;
    let foreign_blobs = other.path().join("blobs").to_string_lossy().into_owned();
    rejected(&["backup", "--init", &foreign_blobs], &env, 1, "pictures in this place").await?;

    // Neither over a database with images, nor into another installation's store, nor under a running server.
    rejected(&["restore", &to], &env, 1, "has images").await?;
    rejected(&["restore", &to, "--force"], &foreign, 1, "belongs to another installation").await?;
    let (server, _) = start(&env, &[]).await?;
    rejected(&["restore", &to, "--force"], &env, 1, "a server runs").await?;
    stop(server).await?;
    rejected(&["restore", &to, "--at", "yesterday"], &env, 2, "neither a snapshot nor a time")
        .await?;
    rejected(&["restore", &to, "--at", "2001-01-01"], &env, 1, "no snapshot that old").await?;

    let restored = report(&["restore", &to, "--force"], &env).await?;
    assert_eq!(restored["missing"]["count"], 0, "{restored:#}");
    let aside = restored["replaced"].as_str().context("the database before")?;
    assert_eq!(images_in_copy(Path::new(aside)).await?, 2, "the old database was not kept");

    // Once more, from the same snapshot: the first one that was put aside stays.
    command(&["keys", "create", "--owner", "a", "--scopes", "read"], &env).await?.success()?;
    let again = report(&["restore", &to, "--force"], &env).await?;
    let second = again["replaced"].as_str().context("the database before")?;
    let keys = keys_in_copy(Path::new(aside)).await?;
    assert_eq!(keys_in_copy(Path::new(second)).await?, keys + 1, "{aside} or {second} is lost");

    // A database without images needs no force, but may have keys: it is kept too. Its server has marked the store.
    let target = TempDir::new()?;
    let env = embedded_env(target.path());
    stop(start(&env, &[]).await?.0).await?;
    command(&["keys", "create", "--owner", "a", "--scopes", "read"], &env).await?.success()?;
    let restored = report(&["restore", &to], &env).await?;
    let aside = restored["replaced"].as_str().context("the database before")?;
    assert_eq!(keys_in_copy(Path::new(aside)).await?, 1, "the key is lost");
    stop(start(&env, &[]).await?.0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_failed_uploads_are_backed_up() -> Result<()> {
    let (data, place, target) = (TempDir::new()?, TempDir::new()?, TempDir::new()?);
    let env = embedded_env(data.path());
    let to = place.path().to_string_lossy().into_owned();
    let hanging = [("SAFELIGHT_FAIL_POINTS", "write.inspected=hang")];
    let (mut server, client) = start(&env, &hanging).await?;
    let uploads = upload(&client, 0..1).await?;
    tokio::task::block_in_place(|| server.wait_for_output("fail point write.inspected", LIMIT))?;
    tokio::task::block_in_place(|| server.kill())?;
    // As after an outage that lasted longer than all attempts.
    let database = SqliteConnectOptions::new().filename(data.path().join("safelight.db"));
    let mut conn = database.connect().await?;
    let failed = "update jobs set status = 'failed' where kind = 'write'";
    assert_eq!(sqlx::query(failed).execute(&mut conn).await?.rows_affected(), 1);
    conn.close().await?;

    let sha256 = uploads[0].0["image"]["sha256"].as_str().context("a hash")?;
    let staged = Path::new("blobs").join(&sha256[..2]).join(sha256);
    let made = report(&["backup", "--init", &to], &env).await?;
    assert_eq!(made["lost_uploads"]["count"], 0, "{made:#}");
    assert!(fs::read(place.path().join(&staged))? == uploads[0].1, "other bytes");
    let restored = report(&["restore", &to], &embedded_env(target.path())).await?;
    assert_eq!(restored["lost_uploads"]["count"], 0, "{restored:#}");
    assert!(fs::read(target.path().join("blobs").join(&staged))? == uploads[0].1, "other bytes");

    // An upload that cannot be retried any more is no fault of the backup.
    for root in [data.path().join("blobs"), place.path().to_owned()] {
        fs::remove_file(root.join(&staged))?;
    }
    let made = report(&["backup", &to], &env).await?;
    assert_eq!((&made["lost_uploads"]["count"], &made["missing"]["count"]), (&1.into(), &0.into()));
    Ok(())
}

#[tokio::test]
async fn backup_never_begins_by_itself() -> Result<()> {
    let (data, disk) = (TempDir::new()?, TempDir::new()?);
    let env = embedded_env(data.path());
    stop(start(&env, &[]).await?.0).await?;
    let mount = disk.path().join("mount");
    let to = mount.join("backup").to_string_lossy().into_owned();
    let rejected = async || -> Result<()> {
        let ended = command(&["backup", &to], &env).await?;
        assert_eq!(ended.code, Some(1), "{ended:#?}");
        let expected = format!("there is no backup at {to}");
        assert!(ended.stderr.contains(&expected), "{ended:#?}");
        assert!(ended.stderr.contains("run once with --init"), "{ended:#?}");
        Ok(())
    };
    rejected().await?;
    assert!(!mount.exists(), "a directory was made");
    fs::create_dir_all(&to)?;
    rejected().await?;
    assert_eq!(fs::read_dir(&to)?.count(), 0, "something was written to an empty directory");

    report(&["backup", "--init", &to], &env).await?;
    report(&["backup", &to], &env).await?;
    // As if the disk was not mounted, and mounted again.
    let away = disk.path().join("away");
    fs::rename(&mount, &away)?;
    fs::create_dir_all(&mount)?;
    rejected().await?;
    assert_eq!(fs::read_dir(&mount)?.count(), 0, "a backup began below the mount point");
    fs::remove_dir(&mount)?;
    fs::rename(&away, &mount)?;
    report(&["backup", &to], &env).await?;
    Ok(())
}

#[tokio::test]
async fn interrupted_backup_and_restore_are_repeated() -> Result<()> {
    let (data, place, target) = (TempDir::new()?, TempDir::new()?, TempDir::new()?);
    let env = embedded_env(data.path());
    let to = place.path().to_string_lossy().into_owned();
    let server = serve(data.path()).await?;
    let client = Client::new(server.url())?;
    let uploads = upload(&client, 0..4).await?;
    finished(&client, &uploads).await?;
    let killed = async |args: &[&str], env: &Env, point: &str| -> Result<()> {
        let mut env = env.clone();
        env.extend(owned(&[("SAFELIGHT_FAIL_POINTS", point)]));
        let ended = command(args, &env).await?;
        assert_eq!(ended.code, None, "{point} was not reached: {ended:#?}");
        Ok(())
    };
    for point in ["backup.dumped=kill", "backup.copied=kill"] {
        killed(&["backup", "--init", &to], &env, point).await?;
        let nothing = command(&["restore", &to], &embedded_env(target.path())).await?;
        assert!(nothing.stderr.contains("no complete snapshot"), "{nothing:#?}");
    }
    let made = report(&["backup", &to], &env).await?;
    assert_eq!(made["copied"], 0, "what was copied before was copied again: {made:#}");

    let target = embedded_env(target.path());
    killed(&["restore", &to], &target, "restore.copied=kill").await?;
    let restored = report(&["restore", &to], &target).await?;
    assert_eq!(restored["copied"], 0, "what was restored before was copied again: {restored:#}");
    let (_server, client) = start(&target, &[]).await?;
    readable(&client, &uploads).await
}

#[tokio::test]
async fn deleted_images_leave_the_backup_when_it_is_pruned() -> Result<()> {
    let (data, place) = (TempDir::new()?, TempDir::new()?);
    let env = embedded_env(data.path());
    let to = place.path().to_string_lossy().into_owned();
    let (_server, client) = start(&env, &[("SAFELIGHT_METADATA_CACHE_MS", "0")]).await?;
    let uploads = upload(&client, 0..3).await?;
    finished(&client, &uploads).await?;
    report(&["backup", "--init", &to], &env).await?;
    let blobs = || objects(&place.path().join("blobs"));
    assert_eq!(blobs()?.len(), 3);
    let image = uploads[0].0["image"]["id"].as_str().context("an image")?;
    let deleted = client.finished(&client.delete_image(image).await?).await?;
    assert_eq!(deleted["status"], "succeeded", "{deleted:#}");

    // As long as a snapshot knows it, it can be restored.
    let kept = report(&["backup", &to, "--prune"], &env).await?;
    assert_eq!((&kept["missing"]["count"], &kept["pruned"]), (&0.into(), &0.into()));
    assert_eq!(blobs()?.len(), 3);
    // What was copied in the last day may belong to a backup that is running somewhere else.
    let young = report(&["backup", &to, "--prune", "--keep", "1"], &env).await?;
    assert_eq!((&young["removed_snapshots"], &young["pruned"]), (&2.into(), &0.into()));
    assert_eq!(blobs()?.len(), 3);
    let earlier = SystemTime::now() - Duration::from_hours(25);
    for folder in ["blobs", "renditions"] {
        for object in objects(&place.path().join(folder))? {
            fs::File::options().write(true).open(object)?.set_modified(earlier)?;
        }
    }
    let pruned = report(&["backup", &to, "--prune", "--keep", "1"], &env).await?;
    assert_eq!(blobs()?.len(), 2, "{pruned:#}");
    let renditions = objects(&place.path().join("renditions"))?;
    assert_eq!(renditions.len(), objects(&data.path().join("blobs/renditions"))?.len());
    assert_eq!(objects(&place.path().join("database"))?.len(), 3, "one snapshot");
    Ok(())
}
