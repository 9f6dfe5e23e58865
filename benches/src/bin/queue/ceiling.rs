//! The rate of a database alone for claiming and settling: two commits per job.

use std::time::Instant;

use anyhow::Result;
use futures::future::try_join_all;
use safelight_testing::postgres::Postgres;
use sqlx::{
    ConnectOptions, Connection,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tempfile::TempDir;

/// Concurrent connections that claim and settle.
const CONNECTIONS: usize = 16;

/// Updates in one commit, as in Safelight's writer.
const GROUP: usize = 32;

#[allow(clippy::cast_precision_loss)] // exact up to 2^53 jobs
fn rate(jobs: usize, since: Instant) -> f64 {
    jobs as f64 / since.elapsed().as_secs_f64()
}

/// Jobs per second on PostgreSQL, with one commit to claim and one to settle each job.
pub async fn postgres(jobs: usize, rounds: usize) -> Result<Vec<f64>> {
    let url = Postgres::fresh_database().await?;
    let pool =
        PgPoolOptions::new().max_connections(u32::try_from(CONNECTIONS)?).connect(&url).await?;
    let mut rates = Vec::new();
    for _ in 0..rounds {
        sqlx::query("drop table if exists work").execute(&pool).await?;
        sqlx::query("create table work (id int primary key, state int not null)")
            .execute(&pool)
            .await?;
        sqlx::query("insert into work select id, 0 from generate_series(0, $1) id")
            .bind(i32::try_from(jobs)?)
            .execute(&pool)
            .await?;
        let started = Instant::now();
        let workers = (0..CONNECTIONS).map(|worker| {
            let pool = pool.clone();
            async move {
                for job in (worker..jobs).step_by(CONNECTIONS) {
                    for state in [1, 2] {
                        sqlx::query("update work set state = $2 where id = $1 and state = $2 - 1")
                            .bind(i32::try_from(job)?)
                            .bind(state)
                            .execute(&pool)
                            .await?;
                    }
                }
                anyhow::Ok(())
            }
        });
        try_join_all(workers).await?;
        rates.push(rate(jobs, started));
    }
    Ok(rates)
}

/// Jobs per second on SQLite with synchronous = FULL, with the updates of many jobs in each commit.
pub async fn sqlite(jobs: usize, rounds: usize) -> Result<Vec<f64>> {
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let folder = TempDir::new()?;
        let mut conn = SqliteConnectOptions::new()
            .filename(folder.path().join("ceiling.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .connect()
            .await?;
        sqlx::query("create table work (id integer primary key, state integer not null)")
            .execute(&mut conn)
            .await?;
        sqlx::query(
            "with recursive n (id) as (select 0 union all select id + 1 from n where id < $1)
             insert into work select id, 0 from n",
        )
        .bind(i64::try_from(jobs)?)
        .execute(&mut conn)
        .await?;
        let started = Instant::now();
        for first in (0..jobs).step_by(GROUP) {
            for state in [1, 2] {
                let mut group = conn.begin().await?;
                for job in first..jobs.min(first + GROUP) {
                    sqlx::query("update work set state = $2 where id = $1 and state = $2 - 1")
                        .bind(i64::try_from(job)?)
                        .bind(state)
                        .execute(&mut *group)
                        .await?;
                }
                group.commit().await?;
            }
        }
        rates.push(rate(jobs, started));
    }
    Ok(rates)
}
