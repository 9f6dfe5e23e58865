//! Uploads per second and percentiles of the 202, compared with the ceilings.

use std::time::Instant;

use anyhow::Result;
use futures::future::try_join_all;
use reqwest::{
    Client,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};

use crate::{
    Setup, ceiling,
    payload::Payload,
    row::{Row, Uploads},
};

/// Prints all tables.
pub async fn run(setup: &Setup, clients: &[usize]) -> Result<()> {
    let (photo, undecodable) = (Payload::photograph()?, Payload::undecodable()?);
    println!(
        "\nAccepting JPEGs of {} KB, each with other bytes, in a closed loop",
        photo.len() / 1000
    );

    let ceilings = ceiling::sqlite(setup.duration, clients, &photo).await?;
    table(
        "ceiling: file + fsync + rename + fsync of the folder, and a SQLite FULL group commit",
        &ceilings,
        &[],
    );
    let (server, data) = setup.serve()?;
    let rows = measure(setup, server.url(), clients, &undecodable).await?;
    table("safelight serve, nothing to decode", &rows, &ceilings);
    drop((server, data));
    let (server, data) = setup.serve()?;
    let rows = measure(setup, server.url(), clients, &photo).await?;
    table("safelight serve, decoding and scaling on the same cores", &rows, &ceilings);
    drop((server, data));

    let ceilings =
        ceiling::postgres(setup.duration, clients, &photo, &setup.database().await?).await?;
    table("ceiling: the same file, and a PostgreSQL transaction of one statement", &ceilings, &[]);
    for (workers, title) in [
        (0, "fleet through HAProxy (2 api, S3 in the load generator's process), no workers"),
        (2, "fleet through HAProxy, 2 workers decoding and scaling on the same cores"),
    ] {
        let fleet = setup.fleet(2, workers).await?;
        let rows = measure(setup, &fleet.url(), clients, &photo).await?;
        table(title, &rows, &ceilings);
    }
    Ok(())
}

fn table(title: &str, rows: &[Row], ceilings: &[Row]) {
    println!("\n{title}");
    println!("  clients  uploads/s    p50 ms    p99 ms  rejected  of ceiling");
    for (index, row) in rows.iter().enumerate() {
        row.print(ceilings.get(index).map_or(0.0, Row::rate));
    }
}

/// Measures a row for each number of clients.
pub async fn measure(
    setup: &Setup,
    url: &str,
    clients: &[usize],
    payload: &Payload,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &count in clients {
        let http = Client::builder().pool_max_idle_per_host(count).build()?;
        let started = Instant::now();
        let clients = (0..count).map(|_| client(&http, url, payload, started + setup.duration));
        let results = try_join_all(clients).await?;
        rows.push(Row::new(results, started.elapsed()));
    }
    Ok(rows)
}

/// Uploads one after the other until `end`.
async fn client(http: &Client, url: &str, payload: &Payload, end: Instant) -> Result<Uploads> {
    let mut uploads = Uploads::default();
    let address = format!("{url}/v1/images");
    while Instant::now() < end {
        let started = Instant::now();
        let request = http.post(&address).header(CONTENT_TYPE, "image/jpeg");
        let request = request.header(CONTENT_LENGTH, payload.len()).body(payload.body());
        let response = async {
            let response = request.send().await?;
            let accepted = response.status().is_success();
            response.bytes().await.map(|_| accepted)
        };
        match response.await {
            Ok(true) => uploads.times.push(started.elapsed()),
            Ok(false) => uploads.rejected += 1,
            Err(_) => uploads.broken += 1,
        }
    }
    Ok(uploads)
}
