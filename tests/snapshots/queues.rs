//! The definitions that a node declares on the broker: exchanges, queues with their arguments, bindings.
//!
//! RabbitMQ cannot change the arguments of a durable queue: a node that declares an existing queue with other
//! arguments cannot connect. If you change an argument, also change the version in the queue's name. Then
//! nodes of both releases can run side by side on different queues.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use safelight_testing::wait::LIMIT;
use safelight_testing::{
    fleet::Engines,
    rabbitmq::RabbitMq,
    server::{Server, run, safelight},
};
use serde_json::Value;
use tempfile::TempDir;

use super::assert_reviewed;
use crate::e2e::{binary, embedded_env};

/// The kinds of definitions, and the fields that the snapshot shows.
const DEFINITIONS: &[(&str, &[&str])] = &[
    ("exchanges", &["name", "type", "durable", "auto_delete", "arguments"]),
    ("queues", &["name", "durable", "auto_delete", "arguments"]),
    ("bindings", &["source", "destination_type", "destination", "routing_key", "arguments"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn broker_definitions() -> Result<()> {
    let engines = Engines::shared().await?;
    let data = TempDir::new()?;
    let mut env = embedded_env(data.path());
    env.push(("SAFELIGHT_DATABASE_URL".to_owned(), engines.database_url));
    env.push(("SAFELIGHT_QUEUE_URL".to_owned(), engines.queue_url.clone()));
    let definitions = tokio::task::spawn_blocking(move || -> Result<Value> {
        run(safelight(binary(), ["migrate"], &env), LIMIT)?.success()?;
        // A node listens only after it has declared everything.
        let _node = Server::start(safelight(binary(), ["api"], &env))?;
        let exported = RabbitMq::shared()?.ctl(&["export_definitions", "-"])?;
        Ok(serde_json::from_str(&exported)?)
    })
    .await??;
    let vhost = engines.queue_url.rsplit('/').next().context("a virtual host")?;
    let mut text = String::new();
    for (kind, fields) in DEFINITIONS {
        let lines = describe(&definitions[kind], vhost, fields);
        ensure!(!lines.is_empty(), "no {kind}: {definitions}");
        writeln!(text, "{kind}\n  {}\n", lines.join("\n  "))?;
    }
    assert_reviewed("queues", &text);
    Ok(())
}

/// One line for each definition of a virtual host, sorted.
fn describe(definitions: &Value, vhost: &str, fields: &[&str]) -> Vec<String> {
    let all = definitions.as_array().map(Vec::as_slice).unwrap_or_default();
    let line = |one: &Value| {
        let fields = fields.iter().map(|field| match &one[field] {
            Value::String(text) => format!("{field}={text}"),
            other => format!("{field}={other}"),
        });
        fields.collect::<Vec<_>>().join(" ")
    };
    let mut lines: Vec<String> = all.iter().filter(|one| one["vhost"] == vhost).map(line).collect();
    lines.sort_unstable();
    lines
}
