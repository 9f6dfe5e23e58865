//! Errors at startup: one line, one hint, and a stable exit code.

use std::{
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use safelight_testing::{
    client::{Client, TestClient},
    fleet::Engines,
    pgbouncer::PgBouncer,
    pictures,
    postgres::Postgres,
    server::{Finished, Server, run, safelight},
};
use tempfile::TempDir;

use super::{binary, embedded_env, serve};

/// Longer than Safelight waits for any engine, even on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// No process listens on this port, because only root may.
const UNREACHABLE: &str = "127.0.0.1:1";

/// The exit codes of `safelight --help`.
pub(super) const FAILED: i32 = 1;
const USAGE: i32 = 2;

/// Runs `safelight` with SQLite and the in-process queue in `data`. `env` overrides this configuration.
pub(super) async fn run_to_exit(
    args: &[&str],
    data: &Path,
    env: &[(&str, &str)],
) -> Result<Finished> {
    let mut variables = embedded_env(data);
    variables.extend(env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    variables.push(("RUST_BACKTRACE".to_owned(), "1".to_owned()));
    let command = safelight(binary(), args, &variables);
    tokio::task::spawn_blocking(move || run(command, LIMIT)).await?
}

/// Checks that the process ended with `code`, one error that contains `expected`, and one hint.
pub(super) fn assert_fails(ended: &Finished, code: i32, expected: &str) {
    assert_eq!(ended.code, Some(code), "{ended:#?}");
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let [.., error, hint] = lines[..] else { panic!("no error and hint: {ended:#?}") };
    assert!(error.starts_with("error: ") && hint.starts_with("hint: "), "{ended:#?}");
    assert!(error.to_lowercase().contains(expected), "{error} does not contain {expected}");
    for noise in ["panicked", "backtrace", "stack "] {
        assert!(!ended.stderr.to_lowercase().contains(noise), "{ended:#?}");
    }
    assert_eq!(ended.stdout, "", "errors belong on standard error");
}

#[tokio::test]
async fn invalid_engine_combinations_are_rejected() -> Result<()> {
    let data = TempDir::new()?;
    let amqp = [("SAFELIGHT_QUEUE_URL", "amqp://guest:guest@127.0.0.1:1/v")];
    for role in ["worker", "api"] {
        assert_fails(&run_to_exit(&[role], data.path(), &[]).await?, USAGE, "in-process queue");
        assert_fails(&run_to_exit(&[role], data.path(), &amqp).await?, USAGE, "sqlite");
    }
    Ok(())
}

#[tokio::test]
async fn error_names_port_in_use() -> Result<()> {
    let (data, taken) = (TempDir::new()?, TcpListener::bind("127.0.0.1:0")?);
    let address = taken.local_addr()?.to_string();
    let ended = run_to_exit(&["serve"], data.path(), &[("SAFELIGHT_LISTEN", &address)]).await?;
    assert_fails(&ended, FAILED, &address);
    Ok(())
}

#[tokio::test]
async fn error_names_unusable_certificate() -> Result<()> {
    let data = TempDir::new()?;
    let only_key = [("SAFELIGHT_TLS_KEY", "/nowhere/key.pem")];
    let ended = run_to_exit(&["serve"], data.path(), &only_key).await?;
    assert_fails(&ended, USAGE, "belong together");
    let both = [only_key[0], ("SAFELIGHT_TLS_CERTIFICATE", "/nowhere/certificate.pem")];
    let ended = run_to_exit(&["serve"], data.path(), &both).await?;
    assert_fails(&ended, FAILED, "cannot read /nowhere/certificate.pem");
    Ok(())
}

#[tokio::test]
async fn error_names_unwritable_data_folder() -> Result<()> {
    let folder = TempDir::new()?;
    // A file where a folder should be stops even root.
    let file = folder.path().join("file");
    fs::write(&file, "")?;
    let ended = run_to_exit(&["serve"], &file.join("data"), &[]).await?;
    assert_fails(&ended, FAILED, "cannot write to the folder");
    Ok(())
}

fn mode(path: &Path) -> Result<u32> {
    Ok(path.metadata()?.permissions().mode() & 0o777)
}

/// Everything in a folder that its group or everybody else may use.
fn open_to_others(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut open = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if mode(&path)? & 0o077 != 0 {
            open.push(path.clone());
        }
        if path.is_dir() {
            open.extend(open_to_others(&path)?);
        }
    }
    Ok(open)
}

#[tokio::test]
async fn data_files_are_private_to_their_user() -> Result<()> {
    let folder = TempDir::new()?;
    // Like a home folder that other users may enter.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    let data = folder.path().join("data");
    let server = serve(&data).await?;
    for name in ["", "blobs"] {
        assert_eq!(mode(&data.join(name))?, 0o700, "{name}");
    }
    for name in ["safelight.db", "safelight.db-wal", "safelight.db-shm"] {
        assert_eq!(mode(&data.join(name))?, 0o600, "{name}");
    }
    let client = Client::new(server.url())?;
    let task = client.upload(pictures::jpeg(64, 48, 1)?).await?;
    client.wait_for_task(task["id"].as_str().context("an id")?).await?;
    assert_eq!(open_to_others(&data)?, Vec::<PathBuf>::new());
    let warning = "every user of this machine can read this";
    assert!(!server.output().contains(warning), "{}", server.output());
    drop(server);

    fs::set_permissions(&data, Permissions::from_mode(0o755))?;
    fs::set_permissions(data.join("safelight.db"), Permissions::from_mode(0o644))?;
    let server = serve(&data).await?;
    let log = server.output();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains(warning)).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("safelight.db"), "{log}");
    assert_eq!(
        (mode(&data)?, mode(&data.join("safelight.db"))?),
        (0o755, 0o644),
        "the permissions were changed"
    );
    Ok(())
}

#[tokio::test]
async fn server_raises_open_file_limit_to_hard_limit() -> Result<()> {
    let folder = TempDir::new()?;
    for (limits, most, warns) in [
        // The server raises a shell's soft limit.
        ("ulimit -Sn 256 && ulimit -Hn 2000", "1000", false),
        ("ulimit -Sn 256 && ulimit -Hn 1000", "1000", true),
    ] {
        let mut env = embedded_env(&folder.path().join("data"));
        env.push(("SAFELIGHT_MAX_CONNECTIONS".to_owned(), most.to_owned()));
        let script = format!("{limits} && exec \"$0\" serve");
        let program = binary().to_str().context("a path")?;
        let command = safelight(Path::new("sh"), ["-c", &script, program], &env);
        let server = tokio::task::spawn_blocking(move || Server::start(command)).await??;
        // The warning may come after the message that the server listens, so wait for an answer.
        let client = Client::new(server.url())?;
        assert_eq!(client.get("/livez").await?.status(), 200);
        let log = server.output();
        assert_eq!(log.contains("fewer connections than max_connections"), warns, "{log}");
    }
    Ok(())
}

#[tokio::test]
async fn read_only_commands_create_no_database() -> Result<()> {
    let folder = TempDir::new()?;
    let data = folder.path().join("data");
    for command in [
        &["keys", "list"][..],
        &["keys", "list-signing"],
        &["keys", "revoke", "sl_k3vq8m2xnp"],
        &["keys", "revoke-signing", "sk_1"],
    ] {
        assert_fails(&run_to_exit(command, &data, &[]).await?, FAILED, "there is no database at");
        assert!(!data.exists(), "{command:?}");
    }
    let create = ["keys", "create", "--owner", "ada", "--scopes", "read"];
    run_to_exit(&create, &data, &[]).await?.success()?;
    run_to_exit(&["keys", "list"], &data, &[]).await?.success()?;
    Ok(())
}

#[tokio::test]
async fn error_names_unreachable_engine_without_password() -> Result<()> {
    let (data, engines) = (TempDir::new()?, Engines::shared().await?);
    let unreachable = format!("postgres://user:hidden@{UNREACHABLE}/safelight");
    let ended =
        run_to_exit(&["serve"], data.path(), &[("SAFELIGHT_DATABASE_URL", &unreachable)]).await?;
    assert_fails(&ended, FAILED, "database");
    assert!(!ended.stderr.contains("hidden"), "{ended:#?}");

    let unreachable = format!("amqp://user:hidden@{UNREACHABLE}/v");
    let database = ("SAFELIGHT_DATABASE_URL", engines.database_url.as_str());
    let broker = ("SAFELIGHT_QUEUE_URL", unreachable.as_str());
    let ended = run_to_exit(&["serve"], data.path(), &[database, broker]).await?;
    assert_fails(&ended, FAILED, "broker");
    assert!(!ended.stderr.contains("hidden"), "{ended:#?}");

    let s3 = [
        ("SAFELIGHT_BLOB_URL", "s3://bucket"),
        ("AWS_ENDPOINT", "http://127.0.0.1:1"),
        ("AWS_ACCESS_KEY_ID", "user"),
        ("AWS_SECRET_ACCESS_KEY", "hidden"),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    let ended = run_to_exit(&["serve"], data.path(), &s3).await?;
    assert_fails(&ended, FAILED, "blob store");
    assert!(!ended.stderr.contains("hidden"), "{ended:#?}");
    Ok(())
}

#[tokio::test]
async fn fleet_requires_migrated_database() -> Result<()> {
    let (data, engines) = (TempDir::new()?, Engines::shared().await?);
    let env = [
        ("SAFELIGHT_DATABASE_URL", engines.database_url.as_str()),
        ("SAFELIGHT_QUEUE_URL", engines.queue_url.as_str()),
    ];
    for role in ["worker", "api"] {
        let ended = run_to_exit(&[role], data.path(), &env).await?;
        assert_fails(&ended, FAILED, "schema");
        assert!(ended.stderr.contains("safelight migrate"), "{ended:#?}");
    }
    Ok(())
}

/// pgbouncer in transaction mode.
#[tokio::test(flavor = "multi_thread")]
async fn pooler_is_rejected_unless_sessions_are_kept() -> Result<()> {
    let data = TempDir::new()?;
    let postgres = tokio::task::block_in_place(Postgres::start)?;
    let pooler = |mode| tokio::task::block_in_place(|| PgBouncer::start(postgres.port(), mode, ""));
    let transactions = pooler("transaction")?;
    let url = transactions.url("postgres");
    for command in ["migrate", "serve", "api", "worker"] {
        let queue = ("SAFELIGHT_QUEUE_URL", "amqp://localhost");
        let env = [("SAFELIGHT_DATABASE_URL", url.as_str()), queue];
        let ended = run_to_exit(&[command], data.path(), &env).await?;
        assert_fails(&ended, FAILED, "shares connections between transactions");
        assert!(ended.stderr.contains("pool_mode = session"), "{ended:#?}");
    }

    let sessions = pooler("session")?;
    let mut env = embedded_env(data.path());
    env.push(("SAFELIGHT_DATABASE_URL".to_owned(), sessions.url("postgres")));
    let command = safelight(binary(), ["serve"], &env);
    let server = tokio::task::block_in_place(|| Server::start(command))?;
    let client = Client::new(server.url())?;
    let task = client.upload(pictures::jpeg(64, 48, 1)?).await?;
    assert_eq!(client.finished(&task).await?["status"], "succeeded");
    Ok(())
}

#[tokio::test]
async fn queue_with_other_arguments_is_named() -> Result<()> {
    let (data, engines) = (TempDir::new()?, Engines::shared().await?);
    let connection =
        lapin::Connection::connect(&engines.queue_url, lapin::ConnectionProperties::default())
            .await?;
    let options = lapin::options::QueueDeclareOptions::durable();
    let arguments = lapin::types::FieldTable::default();
    let channel = connection.create_channel().await?;
    channel.queue_declare("safelight.write.interactive.v1".into(), options, arguments).await?;
    let env = [
        ("SAFELIGHT_DATABASE_URL", engines.database_url.as_str()),
        ("SAFELIGHT_QUEUE_URL", engines.queue_url.as_str()),
    ];
    let ended = run_to_exit(&["serve"], data.path(), &env).await?;
    assert_fails(&ended, FAILED, "precondition_failed");
    assert!(ended.stderr.contains("safelight.write.interactive.v1"), "{ended:#?}");
    assert!(ended.stderr.contains("delete that queue"), "{ended:#?}");
    Ok(())
}

#[tokio::test]
async fn two_processes_cannot_share_an_in_process_queue() -> Result<()> {
    let data = TempDir::new()?;
    let _first = serve(data.path()).await?;
    let ended = run_to_exit(&["serve"], data.path(), &[]).await?;
    assert_fails(&ended, FAILED, "another process");
    Ok(())
}

#[tokio::test]
async fn configuration_errors_leave_disk_untouched() -> Result<()> {
    let folder = TempDir::new()?;
    let (data, file) = (folder.path().join("data"), folder.path().join("safelight.toml"));
    let ended = run_to_exit(&["serve"], &data, &[("SAFELIGHT_LISTN", "127.0.0.1:0")]).await?;
    assert_fails(&ended, USAGE, "safelight_listn");
    assert!(ended.stderr.contains("SAFELIGHT_LISTEN"), "{ended:#?}");

    let file_env = [("SAFELIGHT_CONFIG", file.to_str().unwrap_or_default())];
    for (content, expected) in [
        ("max_pixel = 1\n", "max_pixel"),
        ("max_attempts = 0\n", "max_attempts"),
        ("listen = [\n", "line"),
    ] {
        fs::write(&file, content)?;
        assert_fails(&run_to_exit(&["serve"], &data, &file_env).await?, USAGE, expected);
    }
    fs::remove_file(&file)?;
    assert_fails(&run_to_exit(&["serve"], &data, &file_env).await?, USAGE, "safelight.toml");
    assert!(!data.exists(), "the data folder was created");
    Ok(())
}
