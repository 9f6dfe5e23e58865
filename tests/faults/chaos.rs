//! The scenarios of `make chaos` that end quickly, with short outages. Power losses and volumes need root and loop
//! devices.

use anyhow::{Context, Result, bail};
use safelight_testing::scenarios::{self, Setting};

use super::binary;

/// The shortest outages: what takes minutes in `make chaos ARGS="--scale 1"` takes seconds here.
const SCALE: f64 = 0.05;

async fn run(name: &str) -> Result<()> {
    let scenario = scenarios::find(name).with_context(|| format!("no scenario {name}"))?;
    let setting = Setting { binary: binary().to_owned(), scale: SCALE };
    let outcome = scenario.run(setting).await?;
    eprintln!("{name}: {}", outcome.counts());
    if outcome.accepted == 0 || !outcome.is_clean() {
        bail!("{}: {outcome:#?}", scenario.fault);
    }
    Ok(())
}

macro_rules! scenarios {
    ($($test:ident: $name:literal),+ $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $test() -> Result<()> {
            run($name).await
        })+
    };
}

scenarios! {
    power_loss_keeps_every_accepted_upload: "power-loss",
    read_only_disk_rejects_uploads_and_loses_nothing: "read-only-disk",
    unmounted_volume_is_unavailable: "unmounted",
    second_installation_does_not_start_on_a_folder: "second-folder",
    second_installation_does_not_start_on_a_bucket: "second-bucket",
    clock_that_was_ahead_at_a_crash_delays_no_task: "clock-restart",
    clock_that_steps_back_delays_no_task: "clock-live",
    store_that_finds_nothing_is_unavailable: "store-404",
    store_that_fails_reads_is_unavailable: "store-reads-503",
    wrong_bytes_of_store_make_no_rendition: "store-wrong-bytes",
    errors_of_store_lose_nothing: "store-errors",
    uploads_that_store_loses_are_reported: "store-loses-puts",
    uploads_that_store_cuts_are_reported: "store-cuts-puts",
    failover_to_late_standby_keeps_bytes: "failover-async",
    removal_during_thumbnails_leaves_nothing: "removal",
    outages_of_shared_cache_lose_nothing: "redis",
}
