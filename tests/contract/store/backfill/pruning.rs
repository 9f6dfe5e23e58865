//! Pruning old tasks and backfills.

use anyhow::{Context, Result};
use safelight_domain::{Status, new_id};
use safelight_store::{BackfillStep, Outcome, ReportLine};

use super::{
    corrupt_outcome, finished_upload, queue_children, settle_child, skipped_line, spec,
    start_backfill,
};
use crate::contract::store::{
    promises,
    test_store::{
        HOUR, NOW, TestStore, failure, renditions, thumbnail_notice, without_made_at, write_notice,
    },
};

promises!(
    pruning_keeps_open_and_failed_tasks,
    pruning_a_failed_backfill_keeps_its_failed_tasks,
    pruning_removes_a_backfill_with_its_report,
);

async fn pruning_keeps_open_and_failed_tasks(store: TestStore) -> Result<()> {
    let (done, open) = (finished_upload(&store).await?, store.accept_new_upload().await?);
    let bad = store.accept_new_upload().await?;
    for notice in [write_notice(&bad), thumbnail_notice(&bad)] {
        let job = store.claim_job(&notice).await?;
        store.settle_job(&job, &Outcome::Failed(failure())).await?;
    }
    assert_eq!(store.prune_tasks(HOUR, 9).await?, 0, "nothing is old");
    assert_eq!(store.prune_tasks(NOW, 9).await?, 1);
    assert_eq!(store.prune_tasks(NOW, 9).await?, 0);
    assert!(store.task(done.task).await?.is_none());
    assert!(store.task(open.task).await?.is_some());
    assert!(store.task(bad.task).await?.is_some());
    let image = store.image(done.image).await?.context("the image stays")?;
    assert_eq!(without_made_at(&image.renditions), renditions());
    Ok(())
}

async fn pruning_a_failed_backfill_keeps_its_failed_tasks(store: TestStore) -> Result<()> {
    let image = finished_upload(&store).await?.image;
    let id = start_backfill(&store, spec()).await?;
    let work = queue_children(&store, id, &[image]).await?;
    settle_child(&store, &work[0], &corrupt_outcome()).await?;
    store.collect_results(id, 9).await?;
    assert_eq!(store.prune_tasks(HOUR, 9).await?, 0);
    while store.prune_tasks(NOW, 9).await? > 0 {}
    assert!(store.task(id).await?.is_none());
    assert!(store.backfill_report(id, None, 9).await?.is_empty());
    let kept = store.task(work[0].task).await?.context("the failed task is kept")?;
    assert_eq!(kept.status, Status::Failed);
    assert_eq!(store.blocking_jobs(&[image]).await?.len(), 1);
    assert_eq!(store.retry(&[kept.id]).await?, [kept.id]);
    Ok(())
}

async fn pruning_removes_a_backfill_with_its_report(store: TestStore) -> Result<()> {
    let id = start_backfill(&store, spec()).await?;
    let items: Vec<ReportLine> = (0..5).map(|_| skipped_line(new_id())).collect();
    let step = BackfillStep { without_work: items, is_last: true, ..BackfillStep::of(id, None) };
    assert!(store.advance_backfill(&step).await?);
    store.collect_results(id, 9).await?;
    let mut batches = 0;
    while store.prune_tasks(NOW, 2).await? > 0 {
        batches += 1;
    }
    assert_eq!(batches, 4, "three for the lines, one for the task");
    assert!(store.task(id).await?.is_none());
    Ok(())
}
