//! Traces from the upload to the last settle, and the effects of a missing or unavailable collector.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use safelight_testing::{
    client::{Client, TestClient as _, accepted},
    fleet::Plan,
    otlp::{Collector, Span},
    pictures,
    server::{Server, safelight},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{io::AsyncReadExt, net::TcpListener};

use super::{binary, embedded_env, fleet};
use safelight_testing::wait::{LIMIT, eventually};

/// The client's trace and span.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT: &str = "00f067aa0ba902b7";

/// How long shutdown may take. Sending the last spans takes up to two seconds of it.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

async fn serve(data: &Path, env: &[(&str, &str)]) -> Result<Server> {
    let mut variables = embedded_env(data);
    variables.extend(env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    let command = safelight(binary(), ["serve"], &variables);
    tokio::task::spawn_blocking(move || Server::start(command)).await?
}

/// Stops a server with SIGTERM. Returns how long that took, and the server's output.
async fn stop(mut server: Server) -> Result<(Duration, String)> {
    tokio::task::spawn_blocking(move || {
        let started_at = Instant::now();
        server.signal("TERM")?;
        let status = server.wait(LIMIT)?;
        ensure!(status.success(), "{status}\n{}", server.output());
        Ok((started_at.elapsed(), server.output()))
    })
    .await?
}

/// Uploads a picture in the client's trace and waits until its task has succeeded.
async fn upload(client: &Client, sampled: bool) -> Result<Value> {
    let traceparent = format!("00-{TRACE}-{CLIENT}-0{}", u8::from(sampled));
    let picture = pictures::jpeg(320, 240, 11)?;
    let answer = client.post_image(picture, &[("traceparent", &traceparent)]).await?;
    let task = client.finished(&accepted(answer).await?).await?;
    ensure!(task["status"] == "succeeded", "{task:#}");
    Ok(task)
}

/// The only span with this name.
fn only_span<'a>(spans: &'a [Span], name: &str) -> Result<&'a Span> {
    let mut found = spans.iter().filter(|span| span.name == name);
    let span = found.next().with_context(|| format!("no span `{name}` in {spans:#?}"))?;
    ensure!(found.next().is_none(), "more than one span `{name}` in {spans:#?}");
    Ok(span)
}

/// Checks that the trace has all spans, with the right parents and attributes.
fn assert_complete(spans: &[Span], task: &Value, system: &str) -> Result<()> {
    let request = only_span(spans, "POST /v1/images")?;
    assert_eq!(request.parent, CLIENT);
    assert_eq!(request.attribute("http.response.status_code"), Some("202"));
    assert_eq!(request.attribute("safelight.task"), task["id"].as_str());
    assert_eq!(only_span(spans, "accept")?.parent, request.id);

    let jobs = task["jobs"].as_array().context("jobs")?;
    let jobs: BTreeMap<_, _> =
        jobs.iter().filter_map(|job| Some((job["kind"].as_str()?, job["id"].as_str()?))).collect();
    assert_eq!(jobs.len(), 2);
    for (kind, job) in jobs {
        let queue = format!("safelight.{kind}.interactive.v1");
        for name in ["publish", "process"] {
            let span = only_span(spans, &format!("{name} {kind}"))?;
            assert_eq!(span.parent, request.id, "{span:#?}");
            assert_eq!(span.attribute("messaging.system"), Some(system));
            assert_eq!(span.attribute("messaging.destination.name"), Some(queue.as_str()));
            assert_eq!(span.attribute("messaging.message.id"), Some(job));
        }
        let process = only_span(spans, &format!("process {kind}"))?;
        for (key, value) in [
            ("safelight.task", task["id"].as_str()),
            ("safelight.job", Some(job)),
            ("safelight.kind", Some(kind)),
            ("safelight.lane", Some("interactive")),
            ("safelight.attempt", Some("1")),
            ("safelight.outcome", Some("succeeded")),
            ("error.type", None),
        ] {
            assert_eq!(process.attribute(key), value, "{key} of {process:#?}");
        }
        let mut last = process.start;
        for name in ["claim", "run", "settle"] {
            let within: Vec<_> =
                spans.iter().filter(|s| s.name == name && s.parent == process.id).collect();
            assert_eq!(within.len(), 1, "{name} of {process:#?}");
            assert!(within[0].start >= last && within[0].end <= process.end, "{spans:#?}");
            last = within[0].end;
        }
    }
    assert_eq!(spans.len(), 12, "unexpected spans: {spans:#?}");
    assert!(spans.iter().all(|span| !span.failed && !span.repeats_an_attribute()), "{spans:#?}");
    assert!(spans.iter().all(|span| span.resource("service.name") == Some("safelight")));
    assert!(spans.iter().all(|span| span.resource("service.version").is_some()));
    Ok(())
}

#[tokio::test]
async fn one_trace_covers_upload_to_last_settle() -> Result<()> {
    let (collector, data) = (Collector::start().await?, TempDir::new()?);
    let server = serve(data.path(), &[("SAFELIGHT_OTLP_ENDPOINT", collector.url())]).await?;
    let task = upload(&Client::new(server.url())?, true).await?;
    // Shutdown sends the remaining spans.
    stop(server).await?;
    let spans = collector.trace(TRACE);
    assert_complete(&spans, &task, "embedded")?;
    assert!(spans.iter().all(|span| span.resource("safelight.role") == Some("serve")));
    // The client's polls are separate traces.
    let polls: HashSet<_> = collector.spans().into_iter().map(|span| span.trace).collect();
    assert!(polls.len() > 1);
    Ok(())
}

#[tokio::test]
async fn trace_covers_every_process_of_fleet() -> Result<()> {
    let collector = Collector::start().await?;
    let env = vec![("SAFELIGHT_OTLP_ENDPOINT".to_owned(), collector.url().to_owned())];
    let fleet = fleet(Plan { apis: 1, workers: 1, env }).await?;
    let task = upload(&Client::new(&fleet.url())?, true).await?;
    eventually("all spans have arrived", async || Ok(collector.trace(TRACE).len() == 12)).await?;
    let spans = collector.trace(TRACE);
    assert_complete(&spans, &task, "rabbitmq")?;
    for (name, role) in [("POST /v1/images", "api"), ("process write", "worker")] {
        assert_eq!(only_span(&spans, name)?.resource("safelight.role"), Some(role));
    }
    let instances: HashSet<_> =
        spans.iter().filter_map(|span| span.resource("service.instance.id")).collect();
    assert_eq!(instances.len(), 2);
    Ok(())
}

#[tokio::test]
async fn trace_and_log_contain_every_attempt() -> Result<()> {
    let (collector, data) = (Collector::start().await?, TempDir::new()?);
    let env = [
        ("SAFELIGHT_OTLP_ENDPOINT", collector.url()),
        ("SAFELIGHT_LOG_FORMAT", "json"),
        ("SAFELIGHT_LOG", "info,safelight_api=debug"),
        ("SAFELIGHT_BACKOFF_BASE_MS", "1"),
    ];
    let server = serve(data.path(), &env).await?;
    let client = Client::new(server.url())?;
    let traceparent = format!("00-{TRACE}-{CLIENT}-01");
    let crashing = pictures::with_comment(&pictures::jpeg(64, 48, 12)?, "SAFELIGHT-FAIL:crash");
    let answer = client.post_image(crashing, &[("traceparent", &traceparent)]).await?;
    let task = client.finished(&accepted(answer).await?).await?;
    ensure!(task["status"] == "failed", "{task:#}");
    let (_, output) = stop(server).await?;

    let spans = collector.trace(TRACE);
    let request = only_span(&spans, "POST /v1/images")?;
    let job = &task["jobs"][0];
    let mut attempts: Vec<_> = spans.iter().filter(|span| span.name == "process write").collect();
    attempts.sort_by_key(|span| span.start);
    let outcomes: Vec<_> = attempts
        .iter()
        .map(|span| (span.attribute("safelight.attempt"), span.attribute("safelight.outcome")))
        .collect();
    let expected = [("1", "retry"), ("2", "retry"), ("3", "failed")];
    assert_eq!(outcomes, expected.map(|(attempt, outcome)| (Some(attempt), Some(outcome))));
    for span in attempts {
        assert!(span.failed && span.parent == request.id, "{span:#?}");
        assert_eq!(span.attribute("error.type"), Some("decoder_crashed"));
    }
    assert_eq!(spans.iter().filter(|span| span.name == "publish write").count(), 3);
    assert!(spans.iter().all(|span| !span.repeats_an_attribute()), "{spans:#?}");

    let lines: Vec<Value> =
        output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let line = |message: &str, job: &Value| {
        let is =
            |line: &&Value| line["message"] == message && (job.is_null() || line["job"] == *job);
        lines.iter().find(is).with_context(|| format!("no `{message}` in {output}"))
    };
    let accepted = line("accepted", &Value::Null)?;
    let failed = line("the job failed for good", &job["id"])?;
    for line in [accepted, failed] {
        assert_eq!((&line["task"], &line["trace_id"]), (&task["id"], &Value::from(TRACE)));
    }
    assert_eq!(accepted["image"], task["image"]["id"]);
    assert_eq!((&failed["attempt"], &failed["kind"]), (&Value::from(3), &Value::from("write")));
    Ok(())
}

#[tokio::test]
async fn unsampled_trace_is_not_recorded() -> Result<()> {
    let (collector, data) = (Collector::start().await?, TempDir::new()?);
    let server = serve(data.path(), &[("SAFELIGHT_OTLP_ENDPOINT", collector.url())]).await?;
    upload(&Client::new(server.url())?, false).await?;
    stop(server).await?;
    assert!(collector.trace(TRACE).is_empty());
    let recorded: Vec<_> =
        collector.spans().into_iter().filter(|span| span.name.starts_with("process")).collect();
    assert!(recorded.is_empty(), "{recorded:#?}");
    Ok(())
}

#[tokio::test]
async fn unavailable_or_hanging_collector_delays_nothing() -> Result<()> {
    // Accepts connections and requests, and never answers.
    let hanging = TcpListener::bind("127.0.0.1:0").await?;
    let hangs_at = format!("http://{}", hanging.local_addr()?);
    let (request_received, mut received) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let mut open_streams = Vec::new();
        while let Ok((mut stream, _)) = hanging.accept().await {
            let mut byte = [0];
            if stream.read_exact(&mut byte).await.is_ok() {
                request_received.send_replace(true);
            }
            open_streams.push(stream);
        }
    });
    // No process listens on port 1, because only root may.
    for endpoint in ["http://127.0.0.1:1", &hangs_at] {
        let data = TempDir::new()?;
        let server = serve(data.path(), &[("SAFELIGHT_OTLP_ENDPOINT", endpoint)]).await?;
        let client = Client::new(server.url())?;
        upload(&client, true).await?;
        if endpoint == hangs_at {
            received.wait_for(|received| *received).await?;
            // A request to the collector hangs during this upload.
            upload(&client, true).await?;
        }
        let (took, output) = stop(server).await?;
        assert!(took < SHUTDOWN_LIMIT, "{took:?}\n{output}");
        assert!(output.contains("the collector "), "{output}");
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_sent_without_an_endpoint() -> Result<()> {
    let (collector, data) = (Collector::start().await?, TempDir::new()?);
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()), ("SAFELIGHT_LOG_FORMAT", "json")];
    let server = serve(data.path(), &env).await?;
    upload(&Client::new(server.url())?, true).await?;
    let (_, output) = stop(server).await?;
    assert!(collector.spans().is_empty() && collector.connections() == 0);
    assert!(!output.contains("trace_id"), "{output}");
    Ok(())
}
