//! Backfills, from their creation to their pruning.

mod coordination;
mod imports;
mod pruning;
mod results;
mod steps;
mod walk;

use anyhow::{Context, Result};
use safelight_domain::{
    Backfill, BackfillKind, BackfillSpec, ErrorCode, Failure, ImageId, ItemOutcome, JobId, JobKind,
    JobNotice, Lane, TaskId, TaskKind,
};
use safelight_store::{BackfillStep, ChildTask, NewBackfill, NewUpload, Outcome, ReportLine};
use uuid::Uuid;

use super::test_store::TestStore;

fn spec() -> BackfillSpec {
    BackfillSpec::new(BackfillKind::Renditions)
}

async fn start_backfill(store: &TestStore, spec: BackfillSpec) -> Result<TaskId> {
    let new = NewBackfill { task: TaskId::new(), owner: "ada".parse()?, spec };
    store.create_backfill(&new).await?;
    Ok(new.task)
}

async fn load_backfill(store: &TestStore, id: TaskId) -> Result<Backfill> {
    let task = store.task(id).await?.context("no task")?;
    Ok(*task.backfill.context("no backfill")?)
}

/// An upload whose jobs have succeeded.
async fn finished_upload(store: &TestStore) -> Result<NewUpload> {
    let upload = store.accept_new_upload().await?;
    store.finish_jobs(&upload).await?;
    store.publish_all().await?;
    Ok(upload)
}

fn child(image: ImageId) -> ChildTask {
    let jobs = vec![(JobId::new(), JobKind::Thumbnail)];
    ChildTask { task: TaskId::new(), kind: TaskKind::Rendition, image, jobs, import: None }
}

fn skipped_line(id: Uuid) -> ReportLine {
    let reason = Some("up_to_date".to_owned());
    ReportLine { id, outcome: ItemOutcome::Skipped, reason, detail: None, source: None }
}

/// A step that queues work for one image and moves the cursor to `to`.
fn step(task: TaskId, from: Option<&str>, to: &str, image: ImageId) -> BackfillStep {
    BackfillStep {
        to: Some(to.to_owned()),
        work: vec![child(image)],
        max_attempts: 3,
        ..BackfillStep::of(task, from.map(str::to_owned))
    }
}

/// Takes the last step of a walk, with a child task for each of `images`. Returns the child tasks.
async fn queue_children(
    store: &TestStore,
    task: TaskId,
    images: &[ImageId],
) -> Result<Vec<ChildTask>> {
    let work: Vec<ChildTask> = images.iter().map(|&image| child(image)).collect();
    let step = BackfillStep {
        work: work.clone(),
        max_attempts: 3,
        is_last: true,
        ..BackfillStep::of(task, None)
    };
    assert!(store.advance_backfill(&step).await?);
    Ok(work)
}

fn notice(child: &ChildTask) -> JobNotice {
    let (job, kind) = child.jobs[0];
    JobNotice { job, kind, lane: Lane::Bulk, generation: 0, trace: None }
}

async fn settle_child(store: &TestStore, child: &ChildTask, outcome: &Outcome) -> Result<()> {
    let job = store.claim_job(&notice(child)).await?;
    store.settle_job(&job, outcome).await
}

fn corrupt_outcome() -> Outcome {
    Outcome::Failed(Failure::new(ErrorCode::CorruptImage, "cut short"))
}
