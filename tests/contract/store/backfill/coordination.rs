//! Creating backfills, and which coordinator leads them.

use anyhow::{Context, Result};
use safelight_domain::{
    BackfillKind, BackfillSpec, BackfillState, Lane, Owner, Status, TaskId, TaskKind, WorkerId,
};
use safelight_store::NewBackfill;

use super::{spec, start_backfill};
use crate::contract::store::{
    promises,
    test_store::{HOUR, NOW, TestStore},
};

promises!(
    backfill_task_shows_its_progress,
    creating_a_backfill_again_changes_nothing,
    used_task_id_is_rejected,
    one_coordinator_leads_until_its_lead_expires,
    lead_is_written_only_when_it_needs_renewal,
    paused_backfills_are_led_after_active_ones,
);

async fn backfill_task_shows_its_progress(store: TestStore) -> Result<()> {
    let mut spec = spec();
    spec.presets = vec!["small".to_owned()];
    spec.rate = Some(2.5);
    let id = start_backfill(&store, spec.clone()).await?;
    let task = store.task(id).await?.context("no task")?;
    assert_eq!(
        (task.kind, task.lane, task.status),
        (TaskKind::Backfill, Lane::Bulk, Status::Queued)
    );
    let current = task.backfill.context("no backfill")?;
    assert_eq!((current.spec, current.owner), (spec, "ada".parse()?));
    assert_eq!((current.state, current.paused), (BackfillState::Walking, false));
    assert_eq!((current.expected, current.planned), (None, 0));
    Ok(())
}

async fn creating_a_backfill_again_changes_nothing(store: TestStore) -> Result<()> {
    let new = NewBackfill { task: TaskId::new(), owner: Owner::local(), spec: spec() };
    store.create_backfill(&new).await?;
    let before = store.task(new.task).await?;
    assert!(store.create_backfill(&new).await?);
    assert_eq!(store.task(new.task).await?, before);
    Ok(())
}

async fn used_task_id_is_rejected(store: TestStore) -> Result<()> {
    let mut spec = spec();
    spec.rate = Some(0.1);
    let new = NewBackfill { task: TaskId::new(), owner: Owner::local(), spec };
    assert!(store.create_backfill(&new).await?);
    let before = store.task(new.task).await?;
    let other = NewBackfill { spec: BackfillSpec::new(BackfillKind::Verify), ..new.clone() };
    assert!(!store.create_backfill(&other).await?, "the task has another kind");
    assert_eq!(store.task(new.task).await?, before);
    let upload = store.accept_new_upload().await?;
    let before = store.task(upload.task).await?;
    assert!(!store.create_backfill(&NewBackfill { task: upload.task, ..new }).await?);
    assert_eq!(store.task(upload.task).await?, before);
    assert_eq!(store.lead_backfills(WorkerId::new(), HOUR, 9).await?.len(), 1);
    Ok(())
}

async fn one_coordinator_leads_until_its_lead_expires(store: TestStore) -> Result<()> {
    let (first, second) = (WorkerId::new(), WorkerId::new());
    let id = start_backfill(&store, spec()).await?;
    let led = store.lead_backfills(first, HOUR, 9).await?;
    assert_eq!(led.iter().map(|backfill| backfill.id).collect::<Vec<_>>(), [id]);
    assert!(store.lead_backfills(second, HOUR, 9).await?.is_empty());
    // This lead ends immediately, so the first coordinator loses it.
    assert_eq!(store.lead_backfills(first, NOW, 9).await?.len(), 1);
    assert_eq!(store.lead_backfills(second, HOUR, 9).await?.len(), 1);
    assert!(store.lead_backfills(first, HOUR, 9).await?.is_empty());
    Ok(())
}

async fn lead_is_written_only_when_it_needs_renewal(store: TestStore) -> Result<()> {
    let coordinator = WorkerId::new();
    start_backfill(&store, spec()).await?;
    let led = store.lead_backfills(coordinator, HOUR, 9).await?;
    store.tamper("create table before as select foreman_until from backfills").await?;
    let same = "select count(*) from backfills natural join before";
    assert_eq!(store.lead_backfills(coordinator, HOUR, 9).await?, led);
    assert_eq!(store.query_number(same).await?, 1, "nothing was written");
    assert_eq!(store.lead_backfills(coordinator, 2 * HOUR, 9).await?, led);
    assert_eq!(
        store.query_number(same).await?,
        0,
        "the rest of the lead was shorter than requested"
    );
    Ok(())
}

async fn paused_backfills_are_led_after_active_ones(store: TestStore) -> Result<()> {
    let (paused, active) =
        (start_backfill(&store, spec()).await?, start_backfill(&store, spec()).await?);
    assert!(store.pause_backfill(paused, true).await?);
    let coordinator = WorkerId::new();
    for expected in [active, active] {
        let led = store.lead_backfills(coordinator, HOUR, 1).await?;
        assert_eq!(led.iter().map(|backfill| backfill.id).collect::<Vec<_>>(), [expected]);
    }
    assert_eq!(store.lead_backfills(coordinator, HOUR, 2).await?.len(), 2);
    Ok(())
}
