//! Steps of a walk: their tasks, report lines and counts, pausing, and dry runs.

use anyhow::{Context, Result};
use safelight_domain::{
    BackfillKind, BackfillSpec, BackfillState, ItemOutcome, Lane, Status, TaskKind, WorkerId,
    new_id,
};
use safelight_store::{BackfillStep, ReportLine};

use super::{
    corrupt_outcome, finished_upload, load_backfill, notice, queue_children, settle_child,
    skipped_line, spec, start_backfill, step,
};
use crate::contract::store::{
    promises,
    test_store::{HOUR, TestStore},
};

promises!(
    work_done_in_a_step_is_counted_and_reported,
    step_creates_tasks_and_report_lines,
    step_uses_its_share_of_the_rate,
    step_applies_only_at_the_current_cursor,
    paused_backfill_takes_no_step,
    fully_queued_backfill_cannot_be_paused,
    dry_run_only_counts,
);

async fn work_done_in_a_step_is_counted_and_reported(store: TestStore) -> Result<()> {
    let line = |outcome| ReportLine { outcome, ..skipped_line(new_id()) };
    let step = |id, outcome, from: Option<&str>, to: &str, is_last: bool| BackfillStep {
        to: Some(to.to_owned()),
        done: vec![line(outcome), line(outcome)],
        passed: [("in_use".to_owned(), 40)].into(),
        without_work: vec![skipped_line(new_id())],
        is_last,
        ..BackfillStep::of(id, from.map(str::to_owned))
    };
    for (dry_run, outcome) in [(false, ItemOutcome::Succeeded), (true, ItemOutcome::Planned)] {
        let id =
            start_backfill(&store, BackfillSpec { dry_run, ..BackfillSpec::new(BackfillKind::Gc) })
                .await?;
        // Nodes of 0.1.0 must find nothing to do for it.
        let cursor = load_backfill(&store, id).await?.cursor;
        assert_eq!(cursor, BackfillSpec::new(BackfillKind::Gc).first_cursor());
        let first = step(id, outcome, cursor.as_deref(), "a", false);
        assert!(store.advance_backfill(&first).await?);
        assert!(!store.advance_backfill(&first).await?, "the cursor has moved");
        assert!(store.advance_backfill(&step(id, outcome, Some("a"), "b", true)).await?);
        store.collect_results(id, 9).await?;
        let current = load_backfill(&store, id).await?;
        assert_eq!((current.state, current.planned), (BackfillState::Ended, 4));
        assert_eq!(current.succeeded, if dry_run { 0 } else { 4 });
        assert_eq!(
            current.skipped,
            [("in_use".to_owned(), 80), ("up_to_date".to_owned(), 2)].into()
        );
        assert_eq!(current.walked(), 86);
        let lines = store.backfill_report(id, None, 99).await?;
        assert_eq!(lines.iter().filter(|line| line.outcome == outcome).count(), 4);
        assert_eq!(lines.len(), if dry_run { 4 } else { 6 }, "passed images have no line");
        let task = store.task(id).await?.context("no task")?;
        assert_eq!(task.status, Status::Succeeded);
    }
    Ok(())
}

async fn step_creates_tasks_and_report_lines(store: TestStore) -> Result<()> {
    let (first, second) = (finished_upload(&store).await?, finished_upload(&store).await?);
    let id = start_backfill(&store, spec()).await?;
    let step = BackfillStep {
        expected: Some(7),
        without_work: vec![
            skipped_line(second.image.0),
            ReportLine {
                outcome: ItemOutcome::Failed,
                reason: Some("unreadable".to_owned()),
                ..skipped_line(new_id())
            },
        ],
        ..step(id, None, "here", first.image)
    };
    assert!(store.advance_backfill(&step).await?);

    let current = load_backfill(&store, id).await?;
    assert_eq!((current.cursor.as_deref(), current.expected), (Some("here"), Some(7)));
    assert_eq!((current.planned, current.refused, current.under_way()), (1, 1, 1));
    assert_eq!((current.skipped["up_to_date"], current.walked()), (1, 3));
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Running);
    let made = store.task(step.work[0].task).await?.context("no child")?;
    assert_eq!(
        (made.kind, made.lane, made.status),
        (TaskKind::Rendition, Lane::Bulk, Status::Queued)
    );
    assert_eq!(made.image.map(|image| image.id), Some(first.image));
    assert_eq!((made.jobs.len(), made.jobs[0].max_attempts), (1, 3));
    let due = store.publish_all().await?;
    assert_eq!(due, [notice(&step.work[0])]);
    assert_eq!(store.backfill_report(id, None, 9).await?, step.without_work);
    Ok(())
}

async fn step_uses_its_share_of_the_rate(store: TestStore) -> Result<()> {
    let image = finished_upload(&store).await?.image;
    let id = start_backfill(&store, spec()).await?;
    assert_eq!(load_backfill(&store, id).await?.rested_seconds, None);
    let step = BackfillStep { paced_seconds: 1000.0, ..step(id, None, "a", image) };
    assert!(store.advance_backfill(&step).await?);
    let rested = load_backfill(&store, id).await?.rested_seconds.context("a step was taken")?;
    assert!((-1000.0..-900.0).contains(&rested), "{rested}");
    let led = store.lead_backfills(WorkerId::new(), HOUR, 9).await?;
    assert!(led[0].rested_seconds.is_some_and(|led| (rested..-900.0).contains(&led)), "{led:?}");
    Ok(())
}

async fn step_applies_only_at_the_current_cursor(store: TestStore) -> Result<()> {
    let image = finished_upload(&store).await?.image;
    let id = start_backfill(&store, spec()).await?;
    assert!(store.advance_backfill(&step(id, None, "a", image)).await?);
    let again = step(id, None, "a", image);
    assert!(!store.advance_backfill(&again).await?, "another coordinator was faster");
    assert!(store.task(again.work[0].task).await?.is_none());
    assert!(store.advance_backfill(&step(id, Some("a"), "b", image)).await?);
    let last = BackfillStep { is_last: true, ..step(id, Some("b"), "c", image) };
    assert!(store.advance_backfill(&last).await?);
    assert!(!store.advance_backfill(&step(id, Some("c"), "d", image)).await?, "the walk has ended");
    assert_eq!(load_backfill(&store, id).await?.planned, 3);
    Ok(())
}

async fn paused_backfill_takes_no_step(store: TestStore) -> Result<()> {
    let image = finished_upload(&store).await?.image;
    let id = start_backfill(&store, spec()).await?;
    assert!(store.pause_backfill(id, true).await?);
    assert!(load_backfill(&store, id).await?.paused);
    assert!(!store.advance_backfill(&step(id, None, "a", image)).await?);
    assert!(store.pause_backfill(id, false).await?);
    assert!(store.advance_backfill(&step(id, None, "a", image)).await?);
    let upload = store.accept_new_upload().await?;
    assert!(!store.pause_backfill(upload.task, true).await?, "an upload cannot be paused");
    Ok(())
}

async fn fully_queued_backfill_cannot_be_paused(store: TestStore) -> Result<()> {
    let image = finished_upload(&store).await?.image;
    let id = start_backfill(&store, spec()).await?;
    let work = queue_children(&store, id, &[image]).await?;
    assert!(!store.pause_backfill(id, true).await?);
    assert!(!load_backfill(&store, id).await?.paused);
    settle_child(&store, &work[0], &corrupt_outcome()).await?;
    store.collect_results(id, 9).await?;
    store.retry(&[id]).await?;
    assert!(store.pause_backfill(id, true).await?, "failed images can be queued again");
    assert!(store.pause_backfill(id, false).await?);
    Ok(())
}

async fn dry_run_only_counts(store: TestStore) -> Result<()> {
    let image = finished_upload(&store).await?.image;
    let mut spec = spec();
    spec.dry_run = true;
    let id = start_backfill(&store, spec).await?;
    let step = BackfillStep {
        without_work: vec![skipped_line(new_id())],
        is_last: true,
        ..step(id, None, "a", image)
    };
    assert!(store.advance_backfill(&step).await?);
    assert!(store.task(step.work[0].task).await?.is_none());
    assert!(store.backfill_report(id, None, 9).await?.is_empty());
    store.collect_results(id, 9).await?;
    let current = load_backfill(&store, id).await?;
    assert_eq!((current.planned, current.walked(), current.under_way()), (1, 2, 0));
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Succeeded);
    Ok(())
}
