//! Errors behind the load balancer: clients get problem documents and `Retry-After` from the nodes while these
//! can answer, and from `HAProxy` otherwise.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    thread,
};

use anyhow::{Context, Result};
use reqwest::{Method, StatusCode};
use safelight_testing::{
    client::Client, fleet::Engines, haproxy::HaProxy, load::Load, pictures, postgres::Postgres,
    rabbitmq::RabbitMq,
};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::{SHORT_GRACE, TestCluster, binary, eventually};

/// A path with characters that JSON escapes, and a query, which is not part of `instance`.
const PATH: &str = "/images/a'b?c=%22";

#[tokio::test(flavor = "multi_thread")]
async fn balancer_without_nodes_answers_with_problem_documents() -> Result<()> {
    let mut cluster = TestCluster::start(binary(), 2, 0, &[]).await?;
    let client = Client::new(&cluster.fleet.url())?;
    for node in &mut cluster.fleet.apis {
        block_in_place(|| node.kill())?;
    }
    eventually("the balancer has noticed", async || cluster.fleet.balancer().has_lost("unready"))
        .await?;
    for (method, path) in [
        (Method::GET, "/v1/images?limit=1"),
        (Method::HEAD, "/v1/images"),
        (Method::POST, "/v1/images"),
        (Method::GET, PATH),
    ] {
        let answer = client.request(method.clone(), path).send().await?;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{method} {path}");
        let header = |name: &str| answer.headers()[name].to_str().map(str::to_owned);
        assert_eq!(header("content-type")?, "application/problem+json");
        assert_eq!(header("cache-control")?, "no-store");
        assert_eq!(header("retry-after")?, "2");
        if method == Method::HEAD {
            assert_eq!(answer.text().await?, "");
            continue;
        }
        let expected = json!({
            "type": "urn:safelight:problem:not_ready", "title": "This node cannot serve now",
            "status": 503, "detail": "No node can be reached.", "code": "not_ready",
            "retryable": true, "instance": path.split('?').next(),
        });
        assert_eq!(answer.json::<Value>().await?, expected);
    }
    Ok(())
}

/// Promise: an outage that all nodes share is answered by the nodes, although none of them is ready. And no
/// client gets a 503 without `Retry-After` (the load stops at the first one).
#[tokio::test(flavor = "multi_thread")]
async fn nodes_answer_behind_balancer_while_database_is_unavailable() -> Result<()> {
    let mut postgres = block_in_place(Postgres::start)?;
    block_in_place(|| postgres.create_database("safelight"))?;
    let queue_url = block_in_place(|| RabbitMq::shared()?.fresh_vhost())?;
    let engines = Engines { database_url: postgres.url("safelight"), queue_url };
    let cluster = TestCluster::start_on(engines, binary(), 2, 1, &[SHORT_GRACE])?;
    let client = Client::new(&cluster.fleet.url())?;
    let load = Load::start(3, &[&*cluster.fleet.url()])?;
    load.wait_for_more(30).await?;

    block_in_place(|| postgres.crash())?;
    eventually("the balancer has noticed", async || cluster.fleet.balancer().has_lost("api"))
        .await?;
    let answer = client.post_image(pictures::jpeg(64, 48, 1)?, &[]).await?;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["retry-after"], "2");
    assert_eq!(answer.json::<Value>().await?["code"], "database_unavailable");
    load.wait_for_rejected(6).await?;
    block_in_place(|| postgres.start_again())?;
    cluster.database().wait_for_progress().await?;
    load.wait_for_more(6).await?;
    let results = load.stop().await?;
    cluster.audit()?.run(&results.ledger).await?.clean()?;
    cluster.audit()?.eventually_all_referenced().await?;
    Ok(())
}

/// A node that breaks off: the client learns that it may try again, and how.
#[tokio::test(flavor = "multi_thread")]
async fn broken_answer_of_node_is_a_problem_document() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    // Ends with the test.
    thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(answer(stream))));
    let balancer = block_in_place(|| HaProxy::start(&[&url]))?;
    let client = Client::new(&balancer.url())?;
    for method in [Method::GET, Method::POST] {
        let answer = client.request(method, "/v1/images").send().await?;
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        assert_eq!(answer.headers()["retry-after"], "2");
        let problem: Value = answer.json().await?;
        assert_eq!(problem["code"], "bad_gateway");
        assert_eq!(problem["retryable"], true);
        assert_eq!(problem["instance"], "/v1/images");
        assert!(problem["hint"].as_str().context("a hint")?.contains("Idempotency-Key"));
    }
    Ok(())
}

/// A ready node whose other answers are not HTTP.
fn answer(mut stream: TcpStream) -> Result<()> {
    let mut head = BufReader::new(stream.try_clone()?).lines();
    let request = head.next().context("a request")??;
    while head.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let ready = request.starts_with("GET /readyz ");
    let answer = if ready { "HTTP/1.0 200 OK\r\n\r\n" } else { "nonsense\r\n\r\n" };
    Ok(stream.write_all(answer.as_bytes())?)
}
