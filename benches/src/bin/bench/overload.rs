//! Ten times as many clients as the node allows: its rate and memory.

use anyhow::Result;
use safelight_testing::process::peak_mib;

use crate::{Setup, accept, payload::Payload};

/// The limit of the node on uploads in flight.
const IN_FLIGHT: usize = 64;

/// Concurrent clients: as many as the limit, and ten times as many. Unlike good clients, they do not wait
/// after a rejection.
const CLIENTS: [usize; 2] = [IN_FLIGHT, 10 * IN_FLIGHT];

/// Measures `serve` with each number of clients, on the same process.
pub async fn run(setup: &Setup) -> Result<()> {
    let limit = IN_FLIGHT.to_string();
    let (server, _data) = setup.serve_with(&[("SAFELIGHT_MAX_UPLOADS_IN_FLIGHT", &limit)])?;
    let payload = Payload::undecodable()?;
    println!("\nOverload: {IN_FLIGHT} bodies in flight allowed, clients that never wait");
    println!("  clients  uploads/s    p99 ms  rejected/s    broken  peak MiB  of the first row");
    let mut first = None;
    for clients in CLIENTS {
        let rows = accept::measure(setup, server.url(), &[clients], &payload).await?;
        let Some(row) = rows.first() else { continue };
        let first_rate = *first.get_or_insert(row.rate());
        println!(
            "  {clients:>7} {:>10.0} {:>9.1} {:>11.0} {:>9} {:>9} {:>17.2}",
            row.rate(),
            row.percentile(99).as_secs_f64() * 1e3,
            row.rejections_per_second(),
            row.broken,
            peak_mib(server.id())?,
            row.rate() / first_rate,
        );
    }
    Ok(())
}
