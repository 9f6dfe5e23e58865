//! A server without keys answers the programs of the user who runs it, and nobody else on the same machine.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use safelight_testing::{
    nginx::Nginx,
    server::{Finished, Server, run, safelight},
    wait::eventually,
};
use serde_json::Value;
use tempfile::TempDir;

use super::{binary, embedded_env, serve};

/// What no stranger may do.
const CREATE_KEY: [&str; 5] =
    ["--json", r#"{"owner":"eve","scopes":["admin"]}"#, "-X", "POST", "--silent"];

/// The status and the document of an answer to `curl`, run by `runner` (a command and its first arguments).
fn curl(runner: &[&str], url: &str, args: &[&str]) -> Result<(u16, Value)> {
    let mut command = match runner {
        [] => Command::new("curl"),
        [program, first @ ..] => {
            let mut command = Command::new(program);
            command.args(first).arg("curl");
            command
        }
    };
    let output = command
        .args(["--silent", "--max-time", "20", "--write-out", "\n%{http_code}"])
        .args(args)
        .arg(url)
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let (body, status) = text.rsplit_once('\n').context("no status")?;
    Ok((status.parse()?, serde_json::from_str(body).unwrap_or_default()))
}

/// Asserts that a request was rejected, with a hint that has `reason`.
fn assert_rejected(answer: &(u16, Value), reason: &str) -> Result<()> {
    let hint = answer.1["hint"].as_str().unwrap_or_default();
    ensure!(answer.0 == 401 && hint.contains(reason), "not {reason}: {answer:?}");
    ensure!(hint.contains("local.key") && answer.1["local_key"] == true, "{hint}");
    Ok(())
}

fn keys_url(base: &str) -> String {
    format!("{base}/v1/keys")
}

/// Needs root, to run programs as other users.
#[tokio::test]
async fn only_programs_of_the_servers_user_need_no_key() -> Result<()> {
    let data = TempDir::new()?;
    let server = serve(data.path()).await?;
    ensure!(
        server.output().contains("no key exists yet: your own programs"),
        "{}",
        server.output()
    );
    let list = format!("{}/v1/images", server.url());
    let (status, document) = curl(&[], &list, &[])?;
    ensure!(status == 200, "its own user: {status} {document}");
    ensure!(curl(&[], &list, &["--http2-prior-knowledge"])?.0 == 200, "the same over HTTP/2");

    let other = ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups"];
    assert_rejected(
        &curl(&other, &keys_url(server.url()), &CREATE_KEY)?,
        "another user (uid 65533)",
    )?;
    let socket = format!("{}/v1/workers", server.url());
    assert_rejected(&curl(&other, &socket, &["--http2-prior-knowledge"])?, "another user")?;
    for headers in ["CF-Connecting-IP: 127.0.0.1", "CDN-Loop: x", "True-Client-IP: ::1", "Via: x"] {
        assert_rejected(&curl(&[], &list, &["-H", headers])?, "came through a proxy")?;
    }
    // What is open to everybody stays open.
    for path in ["/livez", "/openapi.json"] {
        ensure!(curl(&other, &format!("{}{path}", server.url()), &[])?.0 == 200, "{path}");
    }
    ensure!(curl(&[], &keys_url(server.url()), &[])?.1["keys"] == serde_json::json!([]));
    Ok(())
}

/// Needs root, to run nginx as it usually runs.
#[tokio::test]
async fn bare_proxy_opens_nothing() -> Result<()> {
    let data = TempDir::new()?;
    let server = serve(data.path()).await?;
    let own = if rustix::process::geteuid().is_root() { "root" } else { "nobody nogroup" };
    for (user, address, reason) in [
        ("www-data", "127.0.0.1", "another user"),
        ("nobody nogroup", "0.0.0.0", "another user"),
        // The users of both are the same.
        (own, "0.0.0.0", "accepts connections itself"),
        (own, "127.0.0.1", "accepts connections itself"),
    ] {
        let proxy = Nginx::proxy(server.url(), user, address)?;
        assert_rejected(&curl(&[], &keys_url(&proxy.url()), &CREATE_KEY)?, reason)?;
        let key = local_key(&data)?;
        let (status, _) = curl(&[], &keys_url(&proxy.url()), &["-H", &key])?;
        ensure!(status == 200, "the local key is good everywhere: {status}");
    }
    let target = server.url().rsplit_once(':').context("a port")?.1;
    let mut relay = Command::new("python3");
    relay.args(["-c", FORKING_RELAY, target]);
    let relay = Server::start(relay)?;
    assert_rejected(
        &curl(&[], &keys_url(relay.url()), &CREATE_KEY)?,
        "accepts connections itself",
    )?;
    ensure!(curl(&[], &keys_url(server.url()), &[])?.1["keys"] == serde_json::json!([]));
    Ok(())
}

/// A relay that starts a process for each connection, as `socat TCP-LISTEN:…,fork` does. That process has no listening
/// socket any more.
const FORKING_RELAY: &str = r#"
import os, select, socket, sys
listener = socket.create_server(("0.0.0.0", 0))
print("listening on http://127.0.0.1:%d" % listener.getsockname()[1], flush=True)
while True:
    client, _ = listener.accept()
    if os.fork():
        client.close()
        continue
    listener.close()
    server = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    while True:
        for end in select.select([client, server], [], [])[0]:
            sent = end.recv(65536)
            if not sent:
                os._exit(0)
            (server if end is client else client).sendall(sent)
"#;

/// A program of another user that answers like a server which asks for the local key.
const STRANGER: &str = r#"
use IO::Socket::INET;
$| = 1;
my $listener = IO::Socket::INET->new(Listen => 5, LocalAddr => "127.0.0.1", LocalPort => 0) or die;
print "listening on http://127.0.0.1:", $listener->sockport, "\n";
while (my $client = $listener->accept) {
    while (<$client>) { print; last if /^\r?\n$/ }
    my $body = '{"local_key": true}';
    print $client "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/problem+json\r\n";
    print $client "Content-Length: ", length $body, "\r\nConnection: close\r\n\r\n", $body;
    close $client;
}
"#;

fn assert_stranger_gets_nothing(
    data: &TempDir,
    tasks: &impl Fn(&str) -> Result<Finished>,
) -> Result<()> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65533", "--regid=65533", "--clear-groups", "perl", "-e", STRANGER]);
    let stranger = Server::start(command)?;
    ensure!(tasks(stranger.url())?.code != Some(0), "it answers 401");
    let secret = std::fs::read_to_string(data.path().join("local.key"))?;
    let received = stranger.output();
    ensure!(received.contains("GET /v1/") && !received.contains(secret.trim()), "{received}");
    Ok(())
}

fn local_key(data: &TempDir) -> Result<String> {
    let secret = std::fs::read_to_string(data.path().join("local.key"))?;
    Ok(format!("Authorization: Bearer {}", secret.trim()))
}

/// Needs root, to run the server as another user than its clients.
#[tokio::test]
async fn commands_find_the_local_key_which_ends_with_the_first_key() -> Result<()> {
    let data = TempDir::new()?;
    let env = embedded_env(data.path());
    // The server takes what comes through the proxy for the proxy's, so the command needs the local key.
    let server = serve(data.path()).await?;
    let proxy = Nginx::proxy(server.url(), "www-data", "127.0.0.1")?;
    let tasks = |url: &str| {
        let mut env = env.clone();
        env.push(("SAFELIGHT_URL".to_owned(), url.to_owned()));
        run(safelight(binary(), ["tasks", "list"], &env), std::time::Duration::from_mins(1))
    };
    tasks(&proxy.url())?.success()?;
    let key = local_key(&data)?;
    assert_stranger_gets_nothing(&data, &tasks)?;
    let made = safelight(binary(), ["keys", "create", "--owner", "ada", "--scopes", "read"], &env);
    run(made, std::time::Duration::from_mins(1))?.success()?;
    let list = format!("{}/v1/images", server.url());
    for args in [&[][..], &["-H", &key]] {
        // A server trusts for half a second that there is no key.
        eventually("the first key ends it", async || Ok(curl(&[], &list, args)?.0 == 401)).await?;
        let (_, problem) = curl(&[], &list, args)?;
        let code = if args.is_empty() { "key_missing" } else { "invalid_key" };
        ensure!(problem["code"] == code && problem["local_key"].is_null(), "{problem}");
    }
    drop(server);
    let server = serve(data.path()).await?;
    ensure!(!data.path().join("local.key").exists(), "it opens nothing any more");
    ensure!(server.output().contains("requests need a key"), "{}", server.output());
    Ok(())
}
