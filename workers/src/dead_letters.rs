//! Messages that the broker has given up on. The store decides what becomes of their jobs: a message
//! carries nothing that is not there.

use std::time::Duration;

use metrics::counter;
use safelight_common::{broker::Delivery, services::Services, store::StoreError};
use tokio_util::sync::CancellationToken;

use crate::trouble::Trouble;

/// Dead letters in hand at once.
const PREFETCH: u16 = 32;

/// Before a job's bell is rung again: whatever wore its message out may still go on.
const REST: Duration = Duration::from_secs(5);

/// Reconciles dead letters until `shutdown`.
pub async fn run(services: Services, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = bury(&services) => {}
    }
}

async fn bury(services: &Services) {
    let mut trouble = Trouble::new("take dead letters from the broker");
    let mut letters = loop {
        match services.broker.dead_letters(PREFETCH).await {
            Ok(letters) => break letters,
            Err(error) => tokio::time::sleep(trouble.failed(&error)).await,
        }
    };
    trouble.over();
    let mut trouble = Trouble::new("reconcile dead letters with the database");
    while let Some(letter) = letters.next().await {
        match reconcile(services, &letter).await {
            Ok(()) => {
                trouble.over();
                letter.ack().await;
            }
            Err(error) => {
                letter.requeue().await;
                tokio::time::sleep(trouble.failed(&error)).await;
            }
        }
    }
}

/// A job that still waits gets a new message; one that has ended, or runs, needs none.
async fn reconcile(services: &Services, letter: &Delivery) -> Result<(), StoreError> {
    let job = letter.doorbell.job;
    let rung = services.store.ring_again(job, REST).await?;
    tracing::warn!(%job, rung, "the broker gave up on a job's message");
    counter!("safelight_dead_letters_total", "kind" => letter.doorbell.kind.as_str()).increment(1);
    Ok(())
}
