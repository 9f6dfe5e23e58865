//! Clients that upload without end, as patient as a good client is: what is refused or unanswered
//! is sent again under the same `Idempotency-Key` until it is accepted.

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

/// Between two uploads of one client, so that the work keeps up with them.
const PAUSE: Duration = Duration::from_millis(150);

/// Before an upload is sent again.
const RETRY: Duration = Duration::from_millis(100);

/// How long one upload may take until it is accepted.
const ACCEPT_LIMIT: Duration = Duration::from_secs(90);

/// Running clients. Each uses the addresses in turn.
pub struct Load {
    clients: JoinSet<Result<()>>,
    shared: Arc<Shared>,
}

struct Shared {
    ledger: Ledger,
    enough: AtomicBool,
    refusals: Mutex<BTreeMap<String, u32>>,
    /// When each upload was accepted, and how long its last try took.
    answers: Mutex<Vec<(Instant, Duration)>>,
    photo: Vec<u8>,
}

/// What the clients saw.
pub struct Tally {
    /// What was accepted.
    pub ledger: Ledger,
    /// How often each refusal came: a status, or `no answer`.
    pub refusals: BTreeMap<String, u32>,
}

impl Load {
    /// Starts `clients` of them.
    pub fn start(clients: usize, urls: &[&str]) -> Result<Self> {
        let shared = Arc::new(Shared {
            ledger: Ledger::default(),
            enough: AtomicBool::new(false),
            refusals: Mutex::default(),
            answers: Mutex::default(),
            photo: pictures::jpeg(128, 96, 1)?,
        });
        let mut load = Self { clients: JoinSet::new(), shared };
        for number in 0..clients {
            let nodes = urls.iter().map(|url| Client::new(url)).collect::<Result<Vec<_>, _>>()?;
            load.clients.spawn(upload_without_end(load.shared.clone(), nodes, number));
        }
        Ok(load)
    }

    /// How many uploads have been accepted.
    pub fn accepted(&self) -> usize {
        self.shared.ledger.len()
    }

    /// How many tries were refused or got no answer.
    pub fn refused(&self) -> u32 {
        lock(&self.shared.refusals).values().sum()
    }

    /// How long each upload took that was accepted since `since`.
    pub fn latencies(&self, since: Instant) -> Vec<Duration> {
        let answers = lock(&self.shared.answers);
        answers.iter().filter(|(at, _)| *at >= since).map(|(_, took)| *took).collect()
    }

    /// Waits until `count` more have been accepted.
    pub async fn more(&self, count: usize) -> Result<()> {
        let wanted = self.accepted() + count;
        self.until("uploads are accepted", || self.accepted() >= wanted).await
    }

    /// Waits until `count` more tries have been refused.
    pub async fn more_refused(&self, count: u32) -> Result<()> {
        let wanted = self.refused() + count;
        self.until("uploads are refused", || self.refused() >= wanted).await
    }

    async fn until(&self, what: &str, done: impl Fn() -> bool) -> Result<()> {
        let waited = eventually_within(ACCEPT_LIMIT, what, async || Ok(done())).await;
        waited.with_context(|| format!("refusals: {:?}", lock(&self.shared.refusals)))
    }

    /// Ends it: what was begun is still brought to its acceptance.
    pub async fn stop(mut self) -> Result<Tally> {
        self.shared.enough.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.context("a client died")??;
        }
        let shared = Arc::into_inner(self.shared).context("the clients have ended")?;
        let refusals = shared.refusals.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Tally { ledger: shared.ledger, refusals })
    }
}

async fn upload_without_end(shared: Arc<Shared>, nodes: Vec<Client>, number: usize) -> Result<()> {
    let mut turn = number;
    while !shared.enough.load(Ordering::Relaxed) {
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
        let begun = Instant::now();
        let node = &nodes[*turn % nodes.len()];
        let refusal = match node.post_image(body.clone(), &[("Idempotency-Key", key)]).await {
            Ok(answer) if answer.status() == StatusCode::ACCEPTED => match accepted(answer).await {
                Ok(task) => {
                    lock(&shared.answers).push((Instant::now(), begun.elapsed()));
                    return shared.ledger.record(&task, &body);
                }
                Err(_) => "no answer".to_owned(),
            },
            Ok(answer) => {
                let status = answer.status();
                let patient = status.is_server_error() || status == StatusCode::CONFLICT;
                ensure!(patient, "{status}: {}", answer.text().await.unwrap_or_default());
                // What a client needs to know to try again.
                if status == StatusCode::SERVICE_UNAVAILABLE
                    && answer.headers().get("retry-after").is_none()
                {
                    bail!("a 503 without Retry-After: {answer:?}");
                }
                status.as_u16().to_string()
            }
            Err(_) => "no answer".to_owned(),
        };
        ensure!(Instant::now() < deadline, "not accepted within {ACCEPT_LIMIT:?}: {refusal}");
        *lock(&shared.refusals).entry(refusal).or_default() += 1;
        *turn += 1;
        tokio::time::sleep(RETRY).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
