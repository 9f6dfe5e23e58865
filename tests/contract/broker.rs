//! The contract of [`JobQueue`] on both backends, and tests for `RabbitMQ` alone.

mod faults;

use std::{collections::HashSet, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::{future::join_all, poll};
use safelight_config::QueueUrl;
use safelight_domain::JobNotice;
use safelight_domain::{JobId, JobKind, Lane, TraceContext};
use safelight_queue::{
    DynJobQueue, InProcessQueue, JobQueue, Message, Queue, QueueError, Subscription,
};
use safelight_testing::rabbitmq::RabbitMq;
use tokio::time::{sleep, timeout};

use safelight_testing::wait::eventually;

/// Only a failing test waits this long.
const DEADLINE: Duration = Duration::from_mins(1);

const QUEUE: Queue = Queue { kind: JobKind::Write, lane: Lane::Interactive };

/// Makes one test per promise and backend.
macro_rules! contract {
    ($($promise:ident),+ $(,)?) => {
        mod on_embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $promise() -> anyhow::Result<()> {
                super::$promise(super::open("embedded:").await?).await
            })+
        }

        mod on_rabbitmq {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $promise() -> anyhow::Result<()> {
                let url = safelight_testing::rabbitmq::RabbitMq::shared()?.fresh_vhost()?;
                super::$promise(super::open(&url).await?).await
            })+
        }
    };
}

contract! {
    messages_arrive_on_the_queue_of_their_kind_and_lane,
    acknowledged_message_is_not_redelivered,
    concurrent_acks_settle_only_their_messages,
    requeued_message_is_redelivered,
    dropped_message_is_redelivered,
    prefetch_limits_unsettled_messages,
    competing_consumers_get_each_message_once,
    queue_keeps_publish_order,
    message_carries_its_trace,
    depth_counts_waiting_messages,
    drained_queue_ends_the_wait,
    dropped_subscription_returns_buffered_messages,
    messages_outlive_their_subscription,
    close_ends_subscriptions_and_rejects_calls,
    concurrent_publishers_are_all_confirmed,
}

async fn messages_arrive_on_the_queue_of_their_kind_and_lane(broker: DynJobQueue) -> Result<()> {
    let sent: Vec<_> = Queue::all().map(|queue| (queue, notice(queue))).collect();
    let notices: Vec<_> = sent.iter().map(|(_, notice)| *notice).collect();
    broker.publish(&notices).await?;
    for (queue, expected) in sent {
        let mut subscription = broker.subscribe(queue, 10).await?;
        let message = next(&mut subscription).await?;
        ensure!(message.notice == expected && !message.redelivered, "{queue}");
        message.ack().await;
        let what = format!("{queue} got another queue's message");
        no_other_message_arrives(&*broker, queue, &mut subscription).await.context(what)?;
    }
    Ok(())
}

async fn acknowledged_message_is_not_redelivered(broker: DynJobQueue) -> Result<()> {
    let (first, second) = (notice(QUEUE), notice(QUEUE));
    broker.publish(&[first]).await?;
    let mut subscription = broker.subscribe(QUEUE, 1).await?;
    next(&mut subscription).await?.ack().await;
    drop(subscription);
    broker.publish(&[second]).await?;
    let mut subscription = broker.subscribe(QUEUE, 1).await?;
    // It may be redelivered: the first subscription may have received it while it ended.
    ensure!(next(&mut subscription).await?.notice == second);
    Ok(())
}

async fn concurrent_acks_settle_only_their_messages(broker: DynJobQueue) -> Result<()> {
    for kept in [[0, 4], [2, 3], [5, 7]] {
        let sent: Vec<_> = (0..8).map(|_| notice(QUEUE)).collect();
        broker.publish(&sent).await?;
        let mut subscription = broker.subscribe(QUEUE, 8).await?;
        let (mut acknowledged, mut left) = (Vec::new(), Vec::new());
        for index in 0..8 {
            let message = next(&mut subscription).await?;
            if kept.contains(&index) { &mut left } else { &mut acknowledged }.push(message);
        }
        let expected: HashSet<_> = left.iter().map(|message| message.notice).collect();
        join_all(acknowledged.into_iter().rev().map(Message::ack)).await;
        drop((left, subscription));
        let mut subscription = broker.subscribe(QUEUE, 8).await?;
        let again = [next(&mut subscription).await?, next(&mut subscription).await?];
        ensure!(again.iter().map(|one| one.notice).collect::<HashSet<_>>() == expected);
        let what = "an acknowledged message was redelivered";
        no_other_message_arrives(&*broker, QUEUE, &mut subscription).await.context(what)?;
        join_all(again.into_iter().map(Message::ack)).await;
    }
    Ok(())
}

async fn requeued_message_is_redelivered(broker: DynJobQueue) -> Result<()> {
    broker.publish(&[notice(QUEUE)]).await?;
    let mut subscription = broker.subscribe(QUEUE, 1).await?;
    let message = next(&mut subscription).await?;
    let first = message.notice;
    message.requeue().await;
    let again = next(&mut subscription).await?;
    ensure!(again.notice == first && again.redelivered);
    again.ack().await;
    let what = "delivered after its acknowledgement";
    no_other_message_arrives(&*broker, QUEUE, &mut subscription).await.context(what)
}

async fn dropped_message_is_redelivered(broker: DynJobQueue) -> Result<()> {
    broker.publish(&[notice(QUEUE), notice(QUEUE)]).await?;
    let mut subscription = broker.subscribe(QUEUE, 1).await?;
    let first = next(&mut subscription).await?.notice;
    // It comes before the message that was not delivered yet.
    let again = next(&mut subscription).await?;
    ensure!(again.notice == first && again.redelivered);
    Ok(())
}

async fn prefetch_limits_unsettled_messages(broker: DynJobQueue) -> Result<()> {
    let sent: Vec<_> = (0..10).map(|_| notice(QUEUE)).collect();
    broker.publish(&sent).await?;
    let mut subscription = broker.subscribe(QUEUE, 3).await?;
    let mut unacknowledged = Vec::new();
    for _ in 0..3 {
        unacknowledged.push(next(&mut subscription).await?);
    }
    // Delivered messages do not count, so 10 - 3 remain.
    wait_for_depth(&*broker, QUEUE, 7).await?;
    unacknowledged.remove(0).ack().await;
    let fourth = next(&mut subscription).await?;
    ensure!(fourth.notice == sent[3]);
    wait_for_depth(&*broker, QUEUE, 6).await
}

async fn competing_consumers_get_each_message_once(broker: DynJobQueue) -> Result<()> {
    const COUNT: usize = 300;
    let (seen, mut all) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..3 {
        let mut subscription = broker.subscribe(QUEUE, 8).await?;
        let seen = seen.clone();
        tokio::spawn(async move {
            while let Some(message) = subscription.next().await {
                let job = message.notice.job;
                message.ack().await;
                let _ = seen.send(job);
            }
        });
    }
    let sent: Vec<_> = (0..COUNT).map(|_| notice(QUEUE)).collect();
    broker.publish(&sent).await?;
    let mut jobs = HashSet::new();
    for _ in 0..COUNT {
        let job = timeout(DEADLINE, all.recv()).await?.context("consumers ended")?;
        ensure!(jobs.insert(job), "delivered twice");
    }
    // End the consumers, and check the messages that they still had.
    drop(seen);
    broker.close().await;
    while let Some(job) = timeout(DEADLINE, all.recv()).await? {
        ensure!(jobs.insert(job), "delivered twice");
    }
    Ok(())
}

async fn queue_keeps_publish_order(broker: DynJobQueue) -> Result<()> {
    let sent: Vec<_> = (0..200).map(|_| notice(QUEUE)).collect();
    for batch in sent.chunks(100) {
        broker.publish(batch).await?;
    }
    let mut subscription = broker.subscribe(QUEUE, 1).await?;
    for expected in &sent {
        let message = next(&mut subscription).await?;
        ensure!(message.notice == *expected, "out of order");
        message.ack().await;
    }
    Ok(())
}

async fn depth_counts_waiting_messages(broker: DynJobQueue) -> Result<()> {
    ensure!(broker.depth(QUEUE).await? == 0);
    let sent: Vec<_> = (0..7).map(|_| notice(QUEUE)).collect();
    broker.publish(&sent).await?;
    wait_for_depth(&*broker, QUEUE, 7).await?;
    ensure!(broker.depth(Queue { lane: Lane::Bulk, ..QUEUE }).await? == 0);
    Ok(())
}

async fn drained_queue_ends_the_wait(broker: DynJobQueue) -> Result<()> {
    timeout(DEADLINE, broker.drained_to(QUEUE, 0)).await.context("an empty queue")?;
    let sent: Vec<_> = (0..9).map(|_| notice(QUEUE)).collect();
    broker.publish(&sent).await?;
    wait_for_depth(&*broker, QUEUE, 9).await?;
    let (mut four, mut seven) = (broker.drained_to(QUEUE, 4), broker.drained_to(QUEUE, 7));
    ensure!(poll!(&mut seven).is_pending(), "9 messages wait");
    let mut messages = broker.subscribe(QUEUE, 3).await?;
    timeout(DEADLINE, seven).await.context("6 messages wait")?;
    ensure!(poll!(&mut four).is_pending(), "6 messages wait");
    for _ in 0..2 {
        next(&mut messages).await?.ack().await;
    }
    timeout(DEADLINE, four).await.context("4 messages wait")?;
    Ok(())
}

async fn dropped_subscription_returns_buffered_messages(broker: DynJobQueue) -> Result<()> {
    let sent: Vec<_> = (0..20).map(|_| notice(QUEUE)).collect();
    broker.publish(&sent).await?;
    let mut subscription = broker.subscribe(QUEUE, 10).await?;
    let delivered = next(&mut subscription).await?;
    wait_for_depth(&*broker, QUEUE, 10).await?;
    drop(subscription);
    wait_for_depth(&*broker, QUEUE, 19).await?;
    let mut subscription = broker.subscribe(QUEUE, 20).await?;
    let mut jobs = HashSet::from([delivered.notice.job]);
    for _ in 0..19 {
        let message = next(&mut subscription).await?;
        jobs.insert(message.notice.job);
        message.ack().await;
    }
    ensure!(jobs == sent.iter().map(|notice| notice.job).collect());
    Ok(())
}

async fn messages_outlive_their_subscription(broker: DynJobQueue) -> Result<()> {
    broker.publish(&[notice(QUEUE), notice(QUEUE)]).await?;
    let mut subscription = broker.subscribe(QUEUE, 2).await?;
    let first = next(&mut subscription).await?;
    let second = next(&mut subscription).await?;
    drop(subscription);
    let mut other = broker.subscribe(QUEUE, 2).await?;
    let what = "delivered to two consumers";
    no_other_message_arrives(&*broker, QUEUE, &mut other).await.context(what)?;
    first.ack().await;
    let expected = second.notice;
    second.requeue().await;
    ensure!(next(&mut other).await?.notice == expected);
    Ok(())
}

async fn close_ends_subscriptions_and_rejects_calls(broker: DynJobQueue) -> Result<()> {
    let sent: Vec<_> = (0..5).map(|_| notice(QUEUE)).collect();
    broker.publish(&sent).await?;
    let mut busy = broker.subscribe(QUEUE, 2).await?;
    let mut idle = broker.subscribe(Queue { lane: Lane::Bulk, ..QUEUE }, 2).await?;
    let delivered = next(&mut busy).await?;
    broker.close().await;
    ensure!(timeout(DEADLINE, idle.next()).await?.is_none());
    ensure!(timeout(DEADLINE, busy.next()).await?.is_none(), "a buffered message was delivered");
    delivered.ack().await;
    ensure!(broker.check().await.is_err());
    ensure!(broker.publish(&sent).await.is_err());
    ensure!(broker.subscribe(QUEUE, 1).await.is_err());
    Ok(())
}

async fn concurrent_publishers_are_all_confirmed(broker: DynJobQueue) -> Result<()> {
    let mut publishers = tokio::task::JoinSet::new();
    // Two publishers for each queue.
    for queue in Queue::all().chain(Queue::all()) {
        let broker = Arc::clone(&broker);
        publishers.spawn(async move {
            let sent: Vec<_> = (0..500).map(|_| notice(queue)).collect();
            for batch in sent.chunks(50) {
                broker.publish(batch).await?;
            }
            anyhow::Ok(sent)
        });
    }
    let sent: HashSet<_> = publishers
        .join_all()
        .await
        .into_iter()
        .collect::<Result<Vec<_>>>()?
        .concat()
        .into_iter()
        .collect();
    let mut arrived = HashSet::new();
    for queue in Queue::all() {
        let mut subscription = broker.subscribe(queue, 64).await?;
        for _ in 0..1000 {
            let message = next(&mut subscription).await?;
            arrived.insert(message.notice);
            message.ack().await;
        }
    }
    ensure!(sent == arrived);
    Ok(())
}

async fn message_carries_its_trace(broker: DynJobQueue) -> Result<()> {
    let trace = Some(TraceContext { trace: [0xab; 16], span: [7; 8], flags: 1 });
    let sent = [JobNotice { trace, ..notice(QUEUE) }, notice(QUEUE)];
    broker.publish(&sent).await?;
    let mut subscription = broker.subscribe(QUEUE, 1).await?;
    for notice in sent {
        let message = next(&mut subscription).await?;
        ensure!(message.notice == notice, "{:?} is not {notice:?}", message.notice);
        message.requeue().await;
        let message = next(&mut subscription).await?;
        ensure!(message.notice == notice, "{:?} is not {notice:?}", message.notice);
        message.ack().await;
    }
    Ok(())
}

#[tokio::test]
async fn full_in_process_queue_rejects_messages() -> Result<()> {
    let broker = open("embedded:").await?;
    let sent: Vec<_> = (0..InProcessQueue::CAPACITY).map(|_| notice(QUEUE)).collect();
    broker.publish(&sent).await?;
    let rejected = broker.publish(&[notice(QUEUE)]).await;
    ensure!(matches!(rejected, Err(QueueError::Full)));
    ensure!(broker.depth(QUEUE).await? == InProcessQueue::CAPACITY as u64);
    let other = Queue { kind: JobKind::Thumbnail, ..QUEUE };
    broker.publish(&[notice(other)]).await?;
    Ok(())
}

/// The broker at `url`, ready to publish.
async fn open(url: &str) -> Result<DynJobQueue> {
    let broker = safelight_testing::open::queue(&url.parse::<QueueUrl>()?);
    eventually("the broker is ready", async || Ok(broker.check().await.is_ok())).await?;
    Ok(broker)
}

fn notice(queue: Queue) -> JobNotice {
    JobNotice { job: JobId::new(), kind: queue.kind, lane: queue.lane, generation: 3, trace: None }
}

async fn next(subscription: &mut Subscription) -> Result<Message> {
    let message = timeout(DEADLINE, subscription.next()).await.context("nothing was delivered")?;
    message.context("the subscription ended")
}

/// Checks that no message arrives before one that is published now. Returned messages would come first.
async fn no_other_message_arrives(
    broker: &dyn JobQueue,
    queue: Queue,
    subscription: &mut Subscription,
) -> Result<()> {
    let last = notice(queue);
    broker.publish(&[last]).await?;
    let message = next(subscription).await?;
    ensure!(message.notice == last, "{:?} arrived", message.notice);
    message.ack().await;
    Ok(())
}

async fn wait_for_depth(broker: &dyn JobQueue, queue: Queue, expected: u64) -> Result<()> {
    let what = format!("{queue} holds {expected}");
    eventually(&what, async || Ok(broker.depth(queue).await.is_ok_and(|depth| depth == expected)))
        .await
}
