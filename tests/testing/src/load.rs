//! Clients that upload continuously. They send rejected and unanswered uploads again with the same
//! `Idempotency-Key` until they are accepted.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use reqwest::StatusCode;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    audit::Ledger,
    client::{Client, accepted},
    pictures,
    wait::eventually_within,
};

/// The pause between two uploads of a client, so that the workers keep up.
const PAUSE: Duration = Duration::from_millis(150);

/// The pause before a retry.
const RETRY: Duration = Duration::from_millis(100);

/// How long an upload may take until it is accepted.
const ACCEPT_LIMIT: Duration = Duration::from_secs(90);

/// Running clients. Each uses the servers in turn.
pub struct Load {
    clients: JoinSet<Result<()>>,
    shared: Arc<Shared>,
}

struct Shared {
    ledger: Ledger,
    stop: AtomicBool,
    rejections: Mutex<BTreeMap<String, u32>>,
    /// When each upload was accepted, and how long its last request took.
    accept_times: Mutex<Vec<(Instant, Duration)>>,
    photo: Vec<u8>,
}

/// The results of all clients.
pub struct LoadResult {
    /// The accepted uploads.
    pub ledger: Ledger,
    /// The number of rejections by status, or `no answer`.
    pub rejections: BTreeMap<String, u32>,
}

impl Load {
    /// Starts `clients` clients.
    pub fn start(clients: usize, urls: &[&str]) -> Result<Self> {
        let shared = Arc::new(Shared {
            ledger: Ledger::default(),
            stop: AtomicBool::new(false),
            rejections: Mutex::default(),
            accept_times: Mutex::default(),
            photo: pictures::jpeg(128, 96, 1)?,
        });
        let mut load = Self { clients: JoinSet::new(), shared };
        for number in 0..clients {
            let nodes = urls.iter().map(|url| Client::new(url)).collect::<Result<Vec<_>, _>>()?;
            load.clients.spawn(upload_until_stopped(load.shared.clone(), nodes, number));
        }
        Ok(load)
    }

    /// The number of accepted uploads.
    pub fn accepted(&self) -> usize {
        self.shared.ledger.len()
    }

    /// A copy of the uploads that were accepted until now.
    pub fn accepted_so_far(&self) -> Ledger {
        let copy = Ledger::default();
        copy.append(&self.shared.ledger);
        copy
    }

    /// The number of requests that were rejected or got no response.
    pub fn rejected(&self) -> u32 {
        lock(&self.shared.rejections).values().sum()
    }

    /// How long the last request of each upload took that was accepted after `since`.
    pub fn latencies(&self, since: Instant) -> Vec<Duration> {
        let times = lock(&self.shared.accept_times);
        times.iter().filter(|(at, _)| *at >= since).map(|(_, took)| *took).collect()
    }

    /// Waits until `count` more uploads are accepted.
    pub async fn wait_for_more(&self, count: usize) -> Result<()> {
        let wanted = self.accepted() + count;
        self.wait_until("uploads are accepted", || self.accepted() >= wanted).await
    }

    /// Waits until `count` more requests are rejected.
    pub async fn wait_for_rejected(&self, count: u32) -> Result<()> {
        let wanted = self.rejected() + count;
        self.wait_until("uploads are rejected", || self.rejected() >= wanted).await
    }

    async fn wait_until(&self, what: &str, done: impl Fn() -> bool) -> Result<()> {
        let waited = eventually_within(ACCEPT_LIMIT, what, async || Ok(done())).await;
        waited.with_context(|| format!("rejections: {:?}", lock(&self.shared.rejections)))
    }

    /// Stops the clients after each has completed its current upload.
    pub async fn stop(mut self) -> Result<LoadResult> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.context("a client died")??;
        }
        let shared = Arc::into_inner(self.shared).context("the clients have ended")?;
        let rejections = shared.rejections.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(LoadResult { ledger: shared.ledger, rejections })
    }
}

async fn upload_until_stopped(
    shared: Arc<Shared>,
    nodes: Vec<Client>,
    number: usize,
) -> Result<()> {
    let mut turn = number;
    while !shared.stop.load(Ordering::Relaxed) {
        turn += 1;
        let key = Uuid::new_v4().to_string();
        let body = pictures::with_comment(&shared.photo, &key);
        upload(&shared, &nodes, &mut turn, &key, body).await?;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Sends one upload until it is accepted.
async fn upload(
    shared: &Shared,
    nodes: &[Client],
    turn: &mut usize,
    key: &str,
    body: Vec<u8>,
) -> Result<()> {
    let deadline = Instant::now() + ACCEPT_LIMIT;
    loop {
        let started = Instant::now();
        let node = &nodes[*turn % nodes.len()];
        let rejection = match node.post_image(body.clone(), &[("Idempotency-Key", key)]).await {
            Ok(response) if response.status() == StatusCode::ACCEPTED => {
                match accepted(response).await {
                    Ok(task) => {
                        lock(&shared.accept_times).push((Instant::now(), started.elapsed()));
                        return shared.ledger.record(&task, &body);
                    }
                    Err(_) => "no answer".to_owned(),
                }
            }
            Ok(response) => {
                let status = response.status();
                let can_retry = status.is_server_error() || status == StatusCode::CONFLICT;
                ensure!(can_retry, "{status}: {}", response.text().await.unwrap_or_default());
                // Clients need `Retry-After` to retry at the right time.
                if status == StatusCode::SERVICE_UNAVAILABLE
                    && response.headers().get("retry-after").is_none()
                {
                    bail!("a 503 without Retry-After: {response:?}");
                }
                status.as_u16().to_string()
            }
            Err(_) => "no answer".to_owned(),
        };
        ensure!(Instant::now() < deadline, "not accepted within {ACCEPT_LIMIT:?}: {rejection}");
        *lock(&shared.rejections).entry(rejection).or_default() += 1;
        *turn += 1;
        tokio::time::sleep(RETRY).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
