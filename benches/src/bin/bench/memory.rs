//! The memory that many large concurrent uploads take.

use std::sync::Arc;

use anyhow::{Result, ensure};
use futures::{future::try_join_all, stream};
use reqwest::{
    Body, Client, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use safelight_testing::process::peak_mib;
use tokio::sync::Barrier;

use crate::{Setup, payload::Payload};

const UPLOADS: usize = 200;
const BYTES: usize = 20_000_000;

/// The size of the chunks that clients send.
const CHUNK: usize = 64 * 1024;

/// Measures an api node of a fleet, and `serve`.
pub async fn run(setup: &Setup) -> Result<()> {
    println!("\nMemory (VmHWM) under {UPLOADS} uploads of {} MB at once", BYTES / 1_000_000);
    let fleet = setup.fleet(1, 0).await?;
    let [api] = &fleet.apis[..] else { anyhow::bail!("expected one api node") };
    report("api, bodies to S3", api.id(), api.url()).await?;
    drop(fleet);
    let (server, _data) = setup.serve()?;
    report("serve, bodies to a folder", server.id(), server.url()).await
}

async fn report(title: &str, process: u32, url: &str) -> Result<()> {
    let before = peak_mib(process)?;
    upload_all(url).await?;
    println!("  {title:<28}{:>6} MiB before, {:>6} MiB at its peak", before, peak_mib(process)?);
    Ok(())
}

/// Sends the first half of every body, and the second halves only after that, so that all uploads are in
/// flight at the same time.
async fn upload_all(url: &str) -> Result<()> {
    let payload = Payload::of_size(BYTES);
    let (http, barrier) = (Client::new(), Arc::new(Barrier::new(UPLOADS)));
    let uploads = (0..UPLOADS).map(|_| async {
        let request = http.post(format!("{url}/v1/images")).header(CONTENT_TYPE, "image/jpeg");
        let body = body_with_barrier(&payload, barrier.clone());
        let response = request.header(CONTENT_LENGTH, payload.len()).body(body).send().await?;
        let status = response.status();
        ensure!(status == StatusCode::ACCEPTED, "{status}: {}", response.text().await?);
        Ok(())
    });
    try_join_all(uploads).await.map(drop)
}

/// A body that waits at the barrier after its first half.
fn body_with_barrier(payload: &Payload, barrier: Arc<Barrier>) -> Body {
    let (head, rest) = payload.parts();
    let chunks = [head].into_iter().chain(
        (0..rest.len()).step_by(CHUNK).map(move |at| rest.slice(at..rest.len().min(at + CHUNK))),
    );
    let half = payload.len() / CHUNK / 2;
    let state = (chunks.enumerate(), barrier);
    Body::wrap_stream(stream::unfold(state, move |(mut chunks, barrier)| async move {
        let (number, chunk) = chunks.next()?;
        if number == half {
            barrier.wait().await;
        }
        Some((Ok::<_, std::io::Error>(chunk), (chunks, barrier)))
    }))
}
