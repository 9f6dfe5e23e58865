//! What happens to `RabbitMQ`, from a lost queue to a killed node.

use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ExchangeDeleteOptions, QueueDeleteOptions},
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;

const DEAD_QUEUE: &str = "safelight.dead.v1";
const DELIVERY_LIMIT: usize = 100;

/// A broker on its own virtual host, and a bare channel to interfere with it.
async fn tampered() -> Result<(DynJobQueue, Connection, Channel)> {
    let url = RabbitMq::shared()?.fresh_vhost()?;
    let broker = open(&url).await?;
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((broker, connection, channel))
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_to_deleted_queue_fails_and_redeclares_it() -> Result<()> {
    let (broker, _connection, channel) = tampered().await?;
    channel.queue_delete(QUEUE.to_string().into(), QueueDeleteOptions::default()).await?;
    let intact = Queue { lane: Lane::Bulk, ..QUEUE };
    let batch = [notice(intact), notice(QUEUE), notice(intact)];
    let refused = broker.publish(&batch).await;
    ensure!(matches!(refused, Err(QueueError::Refused(_))), "{refused:?}");
    eventually("publishing works again", async || Ok(broker.publish(&batch).await.is_ok())).await?;
    depth_becomes(&*broker, QUEUE, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_are_redeclared_on_wiped_broker() -> Result<()> {
    let (broker, _connection, channel) = tampered().await?;
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

/// Somebody deletes a queue, somebody else declares it again at once: its consumers may never be
/// told.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_resubscribes_to_replaced_queue() -> Result<()> {
    let (broker, _connection, channel) = tampered().await?;
    let mut subscription = broker.subscribe(QUEUE, 4).await?;
    for _ in 0..2 {
        let first = notice(QUEUE);
        eventually("publishing works", async || Ok(broker.publish(&[first]).await.is_ok())).await?;
        // In hand while the queue goes.
        let held = next(&mut subscription).await?;
        let delete = channel.queue_delete(QUEUE.to_string().into(), QueueDeleteOptions::default());
        let sent = notice(QUEUE);
        let (deleted, ()) = tokio::join!(delete, async {
            // Declares the queue as soon as it is missed.
            while broker.publish(&[sent]).await.is_err() {}
        });
        deleted?;
        held.ack().await;
        // It may have been published before the deletion, and be gone: what counts is the next.
        let last = notice(QUEUE);
        eventually("publishing works", async || Ok(broker.publish(&[last]).await.is_ok())).await?;
        while next(&mut subscription).await?.notice != last {}
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_messages_are_dropped() -> Result<()> {
    let (broker, _connection, channel) = tampered().await?;
    let (exchange, key) = ("safelight".into(), QUEUE.to_string().into());
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    channel.basic_publish(exchange, key, options, b"?", properties).await?.await?;
    depth_becomes(&*broker, QUEUE, 1).await?;
    let sent = notice(QUEUE);
    broker.publish(&[sent]).await?;
    // With a prefetch of 1, the second message comes only after the first was settled.
    let mut subscription = broker.subscribe(QUEUE, 1).await?;
    let delivery = next(&mut subscription).await?;
    ensure!(delivery.notice == sent);
    delivery.ack().await;
    drop(subscription);
    depth_becomes(&*broker, QUEUE, 0).await
}

/// A release to come may write messages otherwise, but for the job's id.
#[tokio::test(flavor = "multi_thread")]
async fn messages_of_newer_releases_are_readable() -> Result<()> {
    let (broker, _connection, channel) = tampered().await?;
    let sent = JobNotice { generation: 0, ..notice(QUEUE) };
    let body = format!(r#"{{"v":2,"job":"{}","epoch":[7]}}"#, sent.job);
    let (exchange, key) = ("safelight".into(), QUEUE.to_string().into());
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    channel.basic_publish(exchange, key, options, body.as_bytes(), properties).await?.await?;
    let mut subscription = broker.subscribe(QUEUE, 1).await?;
    for _ in 0..2 {
        let delivery = next(&mut subscription).await?;
        ensure!(delivery.notice == sent, "{:?}", delivery.notice);
        // Without the number of its attempt, coming again gives no right to a running one.
        ensure!(!delivery.redelivered);
        delivery.requeue().await;
    }
    next(&mut subscription).await?.ack().await;
    drop(subscription);
    depth_becomes(&*broker, QUEUE, 0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn message_over_delivery_limit_becomes_dead_letter() -> Result<()> {
    let broker = open(&RabbitMq::shared()?.fresh_vhost()?).await?;
    let mut subscription = broker.subscribe(QUEUE, 1).await?;
    let sent = exhaust_deliveries(&*broker, &mut subscription).await?;
    let mut dead = broker.dead_letters(4).await?;
    let letter = next(&mut dead).await?;
    ensure!(letter.notice == sent, "it still knows its queue");
    letter.requeue().await;
    next(&mut dead).await?.ack().await;
    // The next of the dead is another: the first was settled.
    let other = exhaust_deliveries(&*broker, &mut subscription).await?;
    ensure!(next(&mut dead).await?.notice == other, "it was settled");
    Ok(())
}

/// Publishes a message and requeues it until it is delivered no more.
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
    nothing_else_comes(broker, QUEUE, subscription).await.context(what)?;
    Ok(sent)
}

/// One node through all that can happen to it, because starting one takes seconds.
#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_and_publishers_survive_broker_restarts() -> Result<()> {
    let mut node = RabbitMq::start()?;
    let url = node.fresh_vhost()?;
    node.stop()?;

    // Opened before there is a broker.
    let broker = safelight_testing::open::queue(&url.parse::<QueueUrl>()?);
    let mut subscription = broker.subscribe(QUEUE, 3).await?;
    let refused = timeout(Duration::from_secs(1), broker.publish(&[notice(QUEUE)])).await?;
    ensure!(matches!(refused, Err(QueueError::Disconnected)), "{refused:?}");
    node.start_node()?;
    one_passes(&*broker, &mut subscription).await?;

    come_again_after(&*broker, &mut subscription, || {
        node.stop()?;
        node.start_node()
    })
    .await?;
    let load = Load::start(&broker);
    come_again_after(&*broker, &mut subscription, || {
        node.kill()?;
        node.start_node()
    })
    .await?;
    load.all_confirmed_arrive(&*broker).await?;

    blocked_publishers_time_out(&*broker, &mut subscription, &node).await?;
    broker.close().await;
    Ok(())
}

/// Has the publish confirmed that comes once the broker is there, and its message delivered.
async fn one_passes(broker: &dyn JobQueue, subscription: &mut Subscription) -> Result<()> {
    let sent = notice(QUEUE);
    eventually("publishing works", async || Ok(broker.publish(&[sent]).await.is_ok())).await?;
    let delivery = next(subscription).await?;
    ensure!(delivery.notice == sent);
    delivery.ack().await;
    Ok(())
}

/// Of five messages one is in hand and two are buffered when the node goes down: all five are
/// there afterwards, and none of what came from before is handed out.
async fn come_again_after(
    broker: &dyn JobQueue,
    subscription: &mut Subscription,
    fault: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let sent: Vec<_> = (0..5).map(|_| notice(QUEUE)).collect();
    broker.publish(&sent).await?;
    let in_hand = next(subscription).await?;
    ensure!(in_hand.notice == sent[0] && !in_hand.redelivered);
    depth_becomes(broker, QUEUE, 2).await?;
    tokio::task::block_in_place(fault)?;

    // Its connection is gone: this must have no effect, and must not hang.
    timeout(DEADLINE, in_hand.ack()).await?;
    let (mut jobs, mut again) = (HashSet::new(), 0);
    for _ in &sent {
        let delivery = next(subscription).await?;
        jobs.insert(delivery.notice.job);
        again += usize::from(delivery.redelivered);
        delivery.ack().await;
    }
    ensure!(jobs == sent.iter().map(|notice| notice.job).collect(), "lost or doubled");
    ensure!(again == 3, "{again} of the 3 that were out came as redelivered");
    one_passes(broker, subscription).await
}

/// Publishers that do not stop for errors, and remember what was confirmed.
struct Load {
    publishers: JoinSet<(HashSet<JobNotice>, usize)>,
    enough: CancellationToken,
}

impl Load {
    const QUEUE: Queue = Queue { kind: JobKind::Thumbnail, lane: Lane::Interactive };
    /// Between batches, so that the messages of some seconds can be counted in a few.
    const PAUSE: Duration = Duration::from_millis(20);

    fn start(broker: &DynJobQueue) -> Self {
        let mut load = Self { publishers: JoinSet::new(), enough: CancellationToken::new() };
        for _ in 0..4 {
            let (broker, enough) = (Arc::clone(broker), load.enough.clone());
            load.publishers.spawn(async move {
                let (mut confirmed, mut errors) = (HashSet::new(), 0);
                while !enough.is_cancelled() {
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

    async fn all_confirmed_arrive(self, broker: &dyn JobQueue) -> Result<()> {
        self.enough.cancel();
        let results = self.publishers.join_all().await;
        ensure!(results.iter().any(|(_, errors)| *errors > 0), "nobody noticed the fault");
        let mut missing: HashSet<_> =
            results.into_iter().flat_map(|(confirmed, _)| confirmed).collect();
        ensure!(!missing.is_empty(), "nothing was confirmed");
        let mut subscription = broker.subscribe(Self::QUEUE, 64).await?;
        while !missing.is_empty() {
            let arrived = next(&mut subscription).await;
            let arrived =
                arrived.with_context(|| format!("{} confirmed ones lost", missing.len()))?;
            missing.remove(&arrived.notice);
            arrived.ack().await;
        }
        Ok(())
    }
}

/// Short of memory the broker stops reading from publishers; acknowledgements still pass.
async fn blocked_publishers_time_out(
    broker: &dyn JobQueue,
    subscription: &mut Subscription,
    node: &RabbitMq,
) -> Result<()> {
    let sent = notice(QUEUE);
    broker.publish(&[sent]).await?;
    let delivery = next(subscription).await?;
    node.ctl(&["set_vm_memory_high_watermark", "absolute", "1"])?;
    let unlucky = [notice(QUEUE)];
    let publish = timeout(Duration::from_secs(11), broker.publish(&unlucky));
    let blocked = publish.await.context("publish took longer than it may")?;
    ensure!(matches!(blocked, Err(QueueError::TimedOut)), "{blocked:?}");
    ensure!(broker.check().await.is_err());
    delivery.requeue().await;
    let again = next(subscription).await?;
    ensure!(again.notice == sent && again.redelivered);
    again.ack().await;
    node.ctl(&["set_vm_memory_high_watermark", "absolute", "1GB"])?;
    eventually("publishers are unblocked", async || Ok(broker.check().await.is_ok())).await?;
    broker.publish(&[notice(QUEUE)]).await?;
    Ok(())
}
