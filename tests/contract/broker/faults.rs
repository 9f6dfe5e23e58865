//! Faults of `RabbitMQ`, from a deleted queue to a killed node.

use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ExchangeDeleteOptions, QueueDeleteOptions},
};

use std::time::Instant;

use safelight_testing::wait::eventually_within;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;

const DEAD_QUEUE: &str = "safelight.dead.v1";
const DELIVERY_LIMIT: usize = 100;
/// Two heartbeats of 5 s, the limit of a call that was made before, and what a busy machine adds.
const FROZEN_LIMIT: Duration = Duration::from_secs(40);

/// A broker on its own virtual host, and a channel that bypasses the code under test.
async fn broker_with_raw_channel() -> Result<(DynJobQueue, Connection, Channel)> {
    let url = RabbitMq::shared()?.fresh_vhost()?;
    let broker = open(&url).await?;
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((broker, connection, channel))
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_to_deleted_queue_fails_and_redeclares_it() -> Result<()> {
    let (broker, _connection, channel) = broker_with_raw_channel().await?;
    channel.queue_delete(QUEUE.to_string().into(), QueueDeleteOptions::default()).await?;
    let intact = Queue { lane: Lane::Bulk, ..QUEUE };
    let batch = [notice(intact), notice(QUEUE), notice(intact)];
    let rejected = broker.publish(&batch).await;
    ensure!(matches!(rejected, Err(QueueError::Refused(_))), "{rejected:?}");
    eventually("publishing works again", async || Ok(broker.publish(&batch).await.is_ok())).await?;
    wait_for_depth(&*broker, QUEUE, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_are_redeclared_on_wiped_broker() -> Result<()> {
    let (broker, _connection, channel) = broker_with_raw_channel().await?;
    let mut subscription = broker.subscribe(QUEUE, 1).await?;
    broker.publish(&[notice(QUEUE)]).await?;
    next(&mut subscription).await?.ack().await;
    for exchange in ["safelight", "safelight.dead"] {
        channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await?;
    }
    for queue in Queue::all().map(|queue| queue.to_string()).chain([DEAD_QUEUE.to_owned()]) {
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
    }
    let sent = notice(QUEUE);
    eventually("publishing works again", async || Ok(broker.publish(&[sent]).await.is_ok()))
        .await?;
    ensure!(next(&mut subscription).await?.notice == sent);
    Ok(())
}

/// If a queue is deleted and declared again immediately, the broker may not notify its consumers.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_resubscribes_to_replaced_queue() -> Result<()> {
    let (broker, _connection, channel) = broker_with_raw_channel().await?;
    let mut subscription = broker.subscribe(QUEUE, 4).await?;
    for _ in 0..2 {
        let first = notice(QUEUE);
        eventually("publishing works", async || Ok(broker.publish(&[first]).await.is_ok())).await?;
        let unacknowledged = next(&mut subscription).await?;
        let delete = channel.queue_delete(QUEUE.to_string().into(), QueueDeleteOptions::default());
        let sent = notice(QUEUE);
        let (deleted, ()) = tokio::join!(delete, async {
            // Publishing declares the missing queue again.
            while broker.publish(&[sent]).await.is_err() {}
        });
        deleted?;
        unacknowledged.ack().await;
        // The deletion may have removed that message, so wait for a later one.
        let last = notice(QUEUE);
        eventually("publishing works", async || Ok(broker.publish(&[last]).await.is_ok())).await?;
        while next(&mut subscription).await?.notice != last {}
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_messages_are_dropped() -> Result<()> {
    let (broker, _connection, channel) = broker_with_raw_channel().await?;
    let (exchange, key) = ("safelight".into(), QUEUE.to_string().into());
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    channel.basic_publish(exchange, key, options, b"?", properties).await?.await?;
    wait_for_depth(&*broker, QUEUE, 1).await?;
    let sent = notice(QUEUE);
    broker.publish(&[sent]).await?;
    // With a prefetch of 1, the second message arrives only after the first is settled.
    let mut subscription = broker.subscribe(QUEUE, 1).await?;
    let message = next(&mut subscription).await?;
    ensure!(message.notice == sent);
    message.ack().await;
    drop(subscription);
    wait_for_depth(&*broker, QUEUE, 0).await
}

/// A newer release may change everything in a message except the job's id.
#[tokio::test(flavor = "multi_thread")]
async fn messages_of_newer_releases_are_readable() -> Result<()> {
    let (broker, _connection, channel) = broker_with_raw_channel().await?;
    let sent = JobNotice { generation: 0, ..notice(QUEUE) };
    let body = format!(r#"{{"v":2,"job":"{}","epoch":[7]}}"#, sent.job);
    let (exchange, key) = ("safelight".into(), QUEUE.to_string().into());
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    channel.basic_publish(exchange, key, options, body.as_bytes(), properties).await?.await?;
    let mut subscription = broker.subscribe(QUEUE, 1).await?;
    for _ in 0..2 {
        let message = next(&mut subscription).await?;
        ensure!(message.notice == sent, "{:?}", message.notice);
        // Without a generation, a redelivered message must not take over a running attempt.
        ensure!(!message.redelivered);
        message.requeue().await;
    }
    next(&mut subscription).await?.ack().await;
    drop(subscription);
    wait_for_depth(&*broker, QUEUE, 0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn message_over_delivery_limit_becomes_dead_letter() -> Result<()> {
    let broker = open(&RabbitMq::shared()?.fresh_vhost()?).await?;
    let mut subscription = broker.subscribe(QUEUE, 1).await?;
    let sent = exhaust_deliveries(&*broker, &mut subscription).await?;
    let mut dead = broker.dead_letters(4).await?;
    let letter = next(&mut dead).await?;
    ensure!(letter.notice == sent, "the dead letter lost its queue");
    letter.requeue().await;
    next(&mut dead).await?.ack().await;
    // The first dead letter is settled, so the next one is another message.
    let other = exhaust_deliveries(&*broker, &mut subscription).await?;
    ensure!(next(&mut dead).await?.notice == other, "the first dead letter came again");
    Ok(())
}

/// Publishes a message and requeues it until the broker stops delivering it.
async fn exhaust_deliveries(
    broker: &dyn JobQueue,
    subscription: &mut Subscription,
) -> Result<JobNotice> {
    let sent = notice(QUEUE);
    broker.publish(&[sent]).await?;
    for _ in 0..=DELIVERY_LIMIT {
        next(subscription).await?.requeue().await;
    }
    let what = "delivered more often than the limit";
    no_other_message_arrives(broker, QUEUE, subscription).await.context(what)?;
    Ok(sent)
}

/// One test for all faults of a node, because starting a node takes seconds.
#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_and_publishers_survive_broker_restarts() -> Result<()> {
    let mut node = RabbitMq::start()?;
    let url = node.fresh_vhost()?;
    node.stop()?;

    // The queue is opened while no broker runs.
    let broker = safelight_testing::open::queue(&url.parse::<QueueUrl>()?);
    let mut subscription = broker.subscribe(QUEUE, 3).await?;
    let rejected = timeout(Duration::from_secs(1), broker.publish(&[notice(QUEUE)])).await?;
    ensure!(matches!(rejected, Err(QueueError::Disconnected)), "{rejected:?}");
    node.start_node()?;
    publish_and_receive_one(&*broker, &mut subscription).await?;

    messages_survive(&*broker, &mut subscription, || {
        node.stop()?;
        node.start_node()
    })
    .await?;
    let load = PublishLoad::start(&broker);
    messages_survive(&*broker, &mut subscription, || {
        node.kill()?;
        node.start_node()
    })
    .await?;
    load.assert_confirmed_arrive(&*broker).await?;

    blocked_publishers_time_out(&*broker, &mut subscription, &node).await?;
    broker.close().await;
    Ok(())
}

/// Publishes a message once the broker is available, and receives it.
async fn publish_and_receive_one(
    broker: &dyn JobQueue,
    subscription: &mut Subscription,
) -> Result<()> {
    let sent = notice(QUEUE);
    eventually("publishing works", async || Ok(broker.publish(&[sent]).await.is_ok())).await?;
    let message = next(subscription).await?;
    ensure!(message.notice == sent);
    message.ack().await;
    Ok(())
}

/// Of five messages, one is delivered and two are buffered when the fault comes. All five are delivered after
/// it, and none of the buffered ones from the old connection.
async fn messages_survive(
    broker: &dyn JobQueue,
    subscription: &mut Subscription,
    fault: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let sent: Vec<_> = (0..5).map(|_| notice(QUEUE)).collect();
    broker.publish(&sent).await?;
    let delivered = next(subscription).await?;
    ensure!(delivered.notice == sent[0] && !delivered.redelivered);
    wait_for_depth(broker, QUEUE, 2).await?;
    tokio::task::block_in_place(fault)?;

    // The connection is lost. The ack must have no effect, and must not hang.
    timeout(DEADLINE, delivered.ack()).await?;
    let (mut jobs, mut redelivered) = (HashSet::new(), 0);
    for _ in &sent {
        let message = next(subscription).await?;
        jobs.insert(message.notice.job);
        redelivered += usize::from(message.redelivered);
        message.ack().await;
    }
    ensure!(jobs == sent.iter().map(|notice| notice.job).collect(), "lost or duplicated");
    ensure!(redelivered == 3, "{redelivered} of 3 unsettled messages are marked as redelivered");
    publish_and_receive_one(broker, subscription).await
}

/// Publishers that continue after errors and remember the confirmed messages.
struct PublishLoad {
    publishers: JoinSet<(HashSet<JobNotice>, usize)>,
    stop: CancellationToken,
}

impl PublishLoad {
    const QUEUE: Queue = Queue { kind: JobKind::Thumbnail, lane: Lane::Interactive };
    /// The pause between batches. It keeps the number of messages small enough to receive them all.
    const PAUSE: Duration = Duration::from_millis(20);

    fn start(broker: &DynJobQueue) -> Self {
        let mut load = Self { publishers: JoinSet::new(), stop: CancellationToken::new() };
        for _ in 0..4 {
            let (broker, stop) = (Arc::clone(broker), load.stop.clone());
            load.publishers.spawn(async move {
                let (mut confirmed, mut errors) = (HashSet::new(), 0);
                while !stop.is_cancelled() {
                    let batch: Vec<_> = (0..8).map(|_| notice(Self::QUEUE)).collect();
                    match broker.publish(&batch).await {
                        Ok(()) => confirmed.extend(batch),
                        Err(_) => errors += 1,
                    }
                    sleep(Self::PAUSE).await;
                }
                (confirmed, errors)
            });
        }
        load
    }

    async fn assert_confirmed_arrive(self, broker: &dyn JobQueue) -> Result<()> {
        self.stop.cancel();
        let results = self.publishers.join_all().await;
        ensure!(results.iter().any(|(_, errors)| *errors > 0), "no publisher noticed the fault");
        let mut missing: HashSet<_> =
            results.into_iter().flat_map(|(confirmed, _)| confirmed).collect();
        ensure!(!missing.is_empty(), "nothing was confirmed");
        let mut subscription = broker.subscribe(Self::QUEUE, 64).await?;
        while !missing.is_empty() {
            let arrived = next(&mut subscription).await;
            let arrived =
                arrived.with_context(|| format!("{} confirmed messages lost", missing.len()))?;
            missing.remove(&arrived.notice);
            arrived.ack().await;
        }
        Ok(())
    }
}

/// A broker that is short of memory stops reading from publishers. Acknowledgements still work.
async fn blocked_publishers_time_out(
    broker: &dyn JobQueue,
    subscription: &mut Subscription,
    node: &RabbitMq,
) -> Result<()> {
    let sent = notice(QUEUE);
    broker.publish(&[sent]).await?;
    let message = next(subscription).await?;
    node.ctl(&["set_vm_memory_high_watermark", "absolute", "1"])?;
    let batch = [notice(QUEUE)];
    let publish = timeout(Duration::from_secs(11), broker.publish(&batch));
    let blocked = publish.await.context("publish did not time out")?;
    ensure!(matches!(blocked, Err(QueueError::TimedOut)), "{blocked:?}");
    ensure!(broker.check().await.is_err());
    message.requeue().await;
    let again = next(subscription).await?;
    ensure!(again.notice == sent && again.redelivered);
    again.ack().await;
    node.ctl(&["set_vm_memory_high_watermark", "absolute", "1GB"])?;
    eventually("publishers are unblocked", async || Ok(broker.check().await.is_ok())).await?;
    broker.publish(&[notice(QUEUE)]).await?;
    Ok(())
}

/// The nodes share nothing, unlike those of a cluster: here it matters only that both connections leave a frozen
/// one.
#[tokio::test(flavor = "multi_thread")]
async fn frozen_node_is_left_for_another() -> Result<()> {
    let start = || tokio::task::spawn_blocking(RabbitMq::start);
    let (one, two) = tokio::try_join!(start(), start())?;
    let nodes = [one?, two?];
    let urls = format!("{},{}", nodes[0].url("test0"), nodes[1].url("test0"));
    let broker = open(&urls).await?;
    // After the first one, both connections are to the second.
    for node in &nodes {
        node.signal("STOP")?;
        let froze = Instant::now();
        eventually_within(FROZEN_LIMIT, "both connections work", async || {
            let published = broker.publish(&[notice(QUEUE)]).await;
            Ok(published.is_ok() && broker.depth(QUEUE).await.is_ok())
        })
        .await?;
        eprintln!("work continues {:?} after a node froze", froze.elapsed());
        node.signal("CONT")?;
    }
    Ok(())
}
