//! The exchanges and queues on the broker. Every publisher and subscription declares them when it connects, so that
//! a reset broker recovers by itself. Works on `RabbitMQ` 3.10 and 4.x.
//!
//! The arguments of a durable queue cannot be changed. To change them, change the version in the queue's name
//! ([`Queue`]'s `Display`).

use std::time::Duration;

use lapin::{
    Channel, ErrorKind, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::{AMQPValue, FieldTable},
};
use safelight_domain::Lane;
use safelight_queue::{Queue, QueueError};

use super::link::within;

/// The direct exchange for work; the routing key is the queue's name.
pub(super) const EXCHANGE: &str = "safelight";
const DEAD_EXCHANGE: &str = "safelight.dead";
pub(super) const DEAD_QUEUE: &str = "safelight.dead.v1";

/// Redeliveries of a message before it becomes a dead letter. The store counts attempts and stops long before;
/// this only ends loops that the store does not see. Explicit, because 3.10 has no default and the default of 4.0
/// is 20; never -1, which 3.10 treats like 0.
const DELIVERY_LIMIT: i32 = 100;
const INTERACTIVE_MAX_LENGTH: i64 = 1_000_000;
/// The backlog of backfills stays in the store instead of the broker's memory.
const BULK_MAX_LENGTH: i64 = 20_000;

const DECLARE_TIMEOUT: Duration = Duration::from_secs(10);

/// Declares exchanges, queues and bindings. If a queue of the same name has other arguments, fails and closes the
/// channel.
pub(super) async fn declare(channel: &Channel) -> Result<(), QueueError> {
    within(DECLARE_TIMEOUT, declare_all(channel)).await.map_err(|error| match soft_error(&error) {
        Some((AMQPSoftError::PRECONDITIONFAILED, text)) => QueueError::OtherArguments(text),
        _ => error,
    })
}

/// What the broker has against a call, if it closed only the channel because of it.
pub(super) fn soft_error(error: &QueueError) -> Option<(AMQPSoftError, String)> {
    let QueueError::Client(cause) = error else { return None };
    let ErrorKind::ProtocolError(error) = cause.downcast_ref::<lapin::Error>()?.kind() else {
        return None;
    };
    let AMQPErrorKind::Soft(kind) = error.kind() else { return None };
    Some((kind.clone(), error.get_message().to_string()))
}

async fn declare_all(channel: &Channel) -> lapin::Result<()> {
    exchange(channel, EXCHANGE, ExchangeKind::Direct).await?;
    exchange(channel, DEAD_EXCHANGE, ExchangeKind::Fanout).await?;
    let mut dead = FieldTable::default();
    dead.insert("x-queue-type".into(), text("quorum"));
    queue(channel, DEAD_QUEUE, DEAD_EXCHANGE, dead).await?;
    for name in Queue::all() {
        queue(channel, &name.to_string(), EXCHANGE, work_arguments(name.lane)).await?;
    }
    Ok(())
}

fn work_arguments(lane: Lane) -> FieldTable {
    let max_length = match lane {
        Lane::Interactive => INTERACTIVE_MAX_LENGTH,
        Lane::Bulk => BULK_MAX_LENGTH,
    };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
    arguments.insert("x-dead-letter-exchange".into(), text(DEAD_EXCHANGE));
    // At-least-once requires overflow by rejection: a full queue rejects messages and never drops one.
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(max_length));
    arguments
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

async fn exchange(channel: &Channel, name: &str, kind: ExchangeKind) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await
}

/// A durable queue, bound to `exchange` under its own name.
async fn queue(
    channel: &Channel,
    name: &str,
    exchange: &str,
    arguments: FieldTable,
) -> lapin::Result<()> {
    channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await?;
    let (queue, exchange, key) = (name.into(), exchange.into(), name.into());
    let options = QueueBindOptions::default();
    channel.queue_bind(queue, exchange, key, options, FieldTable::default()).await
}
