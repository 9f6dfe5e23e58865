//! Ten times as many clients as a node receives at once: what it still accepts, and its memory.

use anyhow::Result;
use safelight_testing::process::peak_mib;

use crate::{Setup, accept, payload::Payload};

/// Bodies that the node receives at once.
const IN_FLIGHT: usize = 64;

/// Clients at once: as many as there is room for, and ten times that. They do not wait after a
/// refusal, as clients should.
const CLIENTS: [usize; 2] = [IN_FLIGHT, 10 * IN_FLIGHT];

/// Measures `serve`, one row per number of clients on the same process.
pub async fn run(setup: &Setup) -> Result<()> {
    let limit = IN_FLIGHT.to_string();
    let (server, _data) = setup.serve_with(&[("SAFELIGHT_MAX_UPLOADS_IN_FLIGHT", &limit)])?;
    let payload = Payload::undecodable()?;
    println!("\nOverload: {IN_FLIGHT} bodies in flight allowed, clients that never wait");
    println!("  clients  uploads/s    p99 ms   refused/s  peak MiB  of the first row");
    let mut first = None;
    for clients in CLIENTS {
        let rows = accept::measure(setup, server.url(), &[clients], &payload).await?;
        let Some(row) = rows.first() else { continue };
        let alone = *first.get_or_insert(row.rate());
        println!(
            "  {clients:>7} {:>10.0} {:>9.1} {:>11.0} {:>9} {:>17.2}",
            row.rate(),
            row.percentile(99).as_secs_f64() * 1e3,
            row.refusals(),
            peak_mib(server.id())?,
            row.rate() / alone,
        );
    }
    Ok(())
}
