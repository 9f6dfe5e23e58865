//! Both lanes of one worker, and how much of a backlog is published.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::FutureExt;
use safelight_decoder::Attempt;
use safelight_domain::{JobKind, Lane};
use safelight_queue::Queue;
use safelight_store::{ClaimedJob, Outcome};
use tokio::{sync::Semaphore, task::JoinHandle};

use super::lab::{Lab, picture, within};
use crate::{
    WorkerOptions,
    relay::Relay,
    worker::{self, Worker},
};

/// Thumbnail jobs that have begun, by lane, and that end only as they are let go.
#[derive(Clone)]
struct Workshop {
    begun: Arc<[AtomicUsize; 2]>,
    let_go: Arc<Semaphore>,
}

impl Workshop {
    fn open(lab: &Lab, lanes: &[Lane], concurrency: usize) -> (Self, JoinHandle<()>) {
        let shop = Self { begun: Arc::default(), let_go: Arc::new(Semaphore::new(0)) };
        let in_shop = shop.clone();
        let handler = move |attempt: Attempt, job: ClaimedJob| {
            let shop = in_shop.clone();
            async move {
                // With it goes the slot.
                let _attempt = attempt;
                shop.begun[job.lane as usize].fetch_add(1, Ordering::SeqCst);
                shop.let_go.acquire().await.expect("open").forget();
                Ok(Outcome::Succeeded(Vec::new()))
            }
            .boxed()
        };
        let (kinds, lanes) = (vec![JobKind::Thumbnail], lanes.to_vec());
        let options = WorkerOptions { kinds, lanes, concurrency };
        let worker = Worker::with_handler(lab.services.clone(), &options, Box::new(handler));
        let work = worker::work(Arc::new(worker), options, lab.shutdown.clone());
        (shop, tokio::spawn(work))
    }

    fn begun(&self, lane: Lane) -> usize {
        self.begun[lane as usize].load(Ordering::SeqCst)
    }

    async fn has_begun(&self, lane: Lane, count: usize) {
        within("jobs begin", async {
            while self.begun(lane) < count {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_flood_of_bulk_work_leaves_a_slot_for_who_is_waiting() {
    let lab = Lab::new(&[]).await;
    for _ in 0..12 {
        lab.upload_on(Lane::Bulk, &picture()).await;
    }
    let _relay = lab.relay();
    let (shop, _worker) = Workshop::open(&lab, Lane::ALL, 4);
    shop.has_begun(Lane::Bulk, 3).await;
    // Had the flood taken the last slot, this one would not begin: nothing ever ends here.
    lab.upload(&picture()).await;
    lab.services.outbox_signal.notify();
    shop.has_begun(Lane::Interactive, 1).await;
    assert_eq!(shop.begun(Lane::Bulk), 3);
}

#[tokio::test]
async fn interactive_work_comes_first_and_may_take_every_slot() {
    let lab = Lab::new(&[]).await;
    for _ in 0..4 {
        lab.upload_on(Lane::Bulk, &picture()).await;
        lab.upload(&picture()).await;
    }
    let relay = lab.relay();
    let queues = Lane::ALL.iter().map(|&lane| Queue { kind: JobKind::Thumbnail, lane });
    for queue in queues {
        within("all are published", async {
            while lab.services.queue.depth(queue).await.expect("depth") < 4 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    relay.abort();
    let (shop, _worker) = Workshop::open(&lab, Lane::ALL, 1);
    for done in 1..=4 {
        shop.has_begun(Lane::Interactive, done).await;
        assert_eq!(shop.begun(Lane::Bulk), 0, "bulk waits until nobody else does");
        shop.let_go.add_permits(1);
    }
    shop.has_begun(Lane::Bulk, 1).await;
}

#[tokio::test]
async fn a_worker_of_bulk_alone_uses_all_its_slots() {
    let lab = Lab::new(&[]).await;
    for _ in 0..6 {
        lab.upload_on(Lane::Bulk, &picture()).await;
    }
    let _relay = lab.relay();
    let (shop, _worker) = Workshop::open(&lab, &[Lane::Bulk], 4);
    shop.has_begun(Lane::Bulk, 4).await;
}

#[tokio::test]
async fn a_backlog_is_published_only_as_it_is_worked_off() {
    let lab = Lab::new(&[("SAFELIGHT_PUBLISH_AHEAD", "5")]).await;
    let mut uploads = Vec::new();
    for _ in 0..12 {
        uploads.push(lab.upload(&picture()).await);
    }
    let _relay = lab.relay();
    let depth = async |kind| {
        let queue = Queue { kind, lane: Lane::Interactive };
        lab.services.queue.depth(queue).await.expect("depth")
    };
    within("both queues are filled", async {
        while depth(JobKind::Write).await < 5 || depth(JobKind::Thumbnail).await < 5 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // A ring changes nothing: there is no room.
    lab.services.outbox_signal.notify();
    let unpublished = async || lab.services.store.count_unpublished().await.expect("count");
    within("the rest stays where it is", async {
        while unpublished().await != 14 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Nor do relays that begin anew, of nodes that were restarted.
    for _ in 0..3 {
        let mut anew = Relay::new(&lab.services);
        anew.step(&lab.services).await.expect("step");
    }
    assert_eq!((depth(JobKind::Write).await, depth(JobKind::Thumbnail).await), (5, 5));
    let _worker = lab.worker();
    for upload in uploads {
        lab.ended(upload.task).await;
    }
}
