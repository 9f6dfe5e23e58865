//! All scenarios.

use anyhow::Result;
use futures::future::LocalBoxFuture;

use super::{
    balancer, broker, cache, clock, database, failover,
    outcome::{Outcome, Setting},
    power, removal, store, volume,
};

type Run = fn(Setting) -> LocalBoxFuture<'static, Result<Outcome>>;

/// A fault, and what is counted afterwards.
pub struct Scenario {
    /// Its name, for `--only`.
    pub name: &'static str,
    /// The fault, as in the table of results.
    pub fault: &'static str,
    run: Run,
}

impl Scenario {
    /// Runs it on its own deployment. Needs a runtime with several threads.
    pub async fn run(&self, setting: Setting) -> Result<Outcome> {
        (self.run)(setting).await
    }
}

macro_rules! scenario {
    ($name:literal, $fault:literal, $run:path) => {
        Scenario { name: $name, fault: $fault, run: |setting| Box::pin($run(setting)) }
    };
}

/// All of them, in the order of the table.
pub const ALL: &[Scenario] = &[
    scenario!("power-loss", "power loss: what had reached the disk", power::power_loss),
    scenario!(
        "read-only-disk",
        "disk read-only (EROFS on every write and sync)",
        volume::read_only
    ),
    scenario!("unmounted", "volume unmounted and mounted again", volume::unmounted),
    scenario!("second-folder", "second installation on one folder", volume::second_on_folder),
    scenario!("second-bucket", "second installation on one bucket", volume::second_on_bucket),
    scenario!("clock-restart", "clock a day back, at a restart", clock::back_at_restart),
    scenario!("clock-live", "clock an hour back, while running", clock::back_while_running),
    scenario!("store-404", "S3 answers 404", store::not_found),
    scenario!("store-reads-503", "S3 fails reads with 503", store::reads_fail),
    scenario!("store-wrong-bytes", "S3 returns wrong bytes", store::wrong_bytes),
    scenario!("store-errors", "S3: SlowDown, 500, truncated responses", store::errors),
    scenario!("store-loses-puts", "S3 acknowledges PUTs and loses them", store::lost_puts),
    scenario!("store-cuts-puts", "S3 acknowledges PUTs and cuts them", store::cut_puts),
    scenario!("removal", "deleted and cancelled during thumbnails", removal::during_thumbnails),
    scenario!("postgres", "PostgreSQL: read-only, time-outs, locks, crash", database::outages),
    scenario!(
        "failover-sync",
        "PostgreSQL fails over to a synchronous standby",
        failover::synchronous
    ),
    scenario!(
        "failover-async",
        "PostgreSQL fails over to a standby 2 s behind",
        failover::asynchronous
    ),
    scenario!("clock-postgres", "PostgreSQL's clock an hour back", clock::of_database_back),
    scenario!("rabbitmq", "RabbitMQ: killed, frozen, queues deleted", broker::outages),
    scenario!("redis", "Redis: frozen, killed, emptied", cache::outages),
    scenario!("balancer", "HAProxy: each node away, all nodes away", balancer::nodes_away),
];

/// The scenario with this name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
