//! Requests for renditions that an image does not have.

use anyhow::{Context, Result};
use futures::future::try_join_all;
use safelight_domain::{
    ErrorCode, Failure, ImageId, JobId, JobKind, JobNotice, Lane, Rendition, Status, TaskId,
    TaskKind, TraceContext,
};
use safelight_store::{
    DamagedRendition, Effect, NewUpload, Outcome, PageRequest, QueueCapacity, RenditionRequest,
    Requested, Settled, TaskFilter,
};

use super::{
    promises,
    test_store::{
        HOUR, NOW, TestStore, failure, rendition, thumbnail_notice, thumbnail_succeeded,
        without_made_at, write_notice, write_succeeded,
    },
};

promises!(
    request_creates_a_rendition_task,
    request_keeps_its_trace,
    repeated_request_queues_nothing,
    request_joins_pending_work,
    request_does_not_retry_a_failed_rendition,
    cancelled_rendition_is_not_queued_again_immediately,
    recent_rendition_is_not_made_again,
    request_for_a_missing_image_returns_gone,
    concurrent_requests_queue_one_job,
    cancelling_a_request_keeps_the_image,
    cancelling_an_upload_cancels_its_requests,
    concurrent_request_and_cancel_leave_nothing_open,
    failed_request_can_be_retried,
    last_task_of_an_image_is_found_by_job_kind,
    made_at_changes_only_with_the_bytes,
    damaged_rendition_is_forgotten_and_requested,
    damaged_rendition_is_requested_beside_open_work,
    concurrent_requests_for_a_damaged_rendition_queue_one_job,
    rendition_that_was_made_again_is_not_forgotten,
    unreadable_original_is_tried_again_later,
);

fn request(image: ImageId) -> RenditionRequest {
    RenditionRequest {
        image,
        task: TaskId::new(),
        job: JobId::new(),
        max_attempts: 3,
        again_after: HOUR,
        damaged: None,
        trace: None,
    }
}

fn notice(request: &RenditionRequest) -> JobNotice {
    let (kind, lane) = (JobKind::Thumbnail, Lane::Interactive);
    JobNotice { job: request.job, kind, lane, generation: 0, trace: None }
}

/// An upload whose jobs have succeeded and whose messages are published.
async fn finished_upload(store: &TestStore) -> Result<NewUpload> {
    let upload = store.accept_new_upload().await?;
    store.publish_all().await?;
    store.finish_jobs(&upload).await?;
    Ok(upload)
}

/// Requests a rendition and asserts that a job is queued.
async fn queue_request(store: &TestStore, image: ImageId) -> Result<RenditionRequest> {
    let request = request(image);
    assert_eq!(store.request_rendition(&request).await?, Requested::Queued(request.task));
    Ok(request)
}

async fn request_keeps_its_trace(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let trace = Some(TraceContext { trace: [0xab; 16], span: [7; 8], flags: 0 });
    let request = RenditionRequest { trace, ..request(upload.image) };
    assert_eq!(store.request_rendition(&request).await?, Requested::Queued(request.task));
    let due = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due;
    assert_eq!(due, [JobNotice { trace, ..notice(&request) }]);
    Ok(())
}

async fn request_creates_a_rendition_task(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    store.tamper("update images set owner = 'ada'").await?;
    let request = queue_request(&store, upload.image).await?;

    let task = store.task(request.task).await?.context("no task")?;
    assert_eq!((task.kind, task.lane), (TaskKind::Rendition, Lane::Interactive));
    assert_eq!((task.status, task.progress.total, task.jobs.len()), (Status::Queued, 1, 1));
    assert_eq!(task.jobs[0].max_attempts, 3);
    let of_ada = TaskFilter { owner: Some("ada".parse()?), ..TaskFilter::default() };
    let of_ada = TaskFilter { kind: Some(TaskKind::Rendition), ..of_ada };
    let page = store.list_tasks(&of_ada, &PageRequest { before: None, limit: 9 }).await?;
    assert_eq!(page.tasks, std::slice::from_ref(&task), "the owner of the image owns it");
    assert_eq!(task.image.context("no image")?.id, upload.image);
    assert_eq!(store.publish_all().await?, [notice(&request)], "due immediately");

    let job = store.claim_job(&notice(&request)).await?;
    assert_eq!(job.image.renditions.len(), 2, "the existing renditions");
    let renditions = vec![rendition("tiny", 100)];
    store.settle_job(&job, &Outcome::Succeeded(vec![Effect::UpsertRenditions(renditions)])).await?;
    let task = store.task(request.task).await?.context("no task")?;
    assert_eq!(task.status, Status::Succeeded);
    assert_eq!(task.image.context("no image")?.renditions.len(), 3);
    Ok(())
}

async fn repeated_request_queues_nothing(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let request =
        RenditionRequest { again_after: NOW, ..queue_request(&store, upload.image).await? };
    assert_eq!(store.request_rendition(&request).await?, Requested::Pending(request.task));
    let job = store.claim_job(&notice(&request)).await?;
    assert_eq!(store.request_rendition(&request).await?, Requested::Pending(request.task));
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    assert_eq!(store.request_rendition(&request).await?, Requested::Recent(request.task));
    assert_eq!(store.publish_all().await?, [notice(&request)]);
    Ok(())
}

async fn request_joins_pending_work(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let pending = Requested::Pending(upload.task);
    assert_eq!(store.request_rendition(&request(upload.image)).await?, pending);
    let job = store.claim_job(&thumbnail_notice(&upload)).await?;
    assert_eq!(store.request_rendition(&request(upload.image)).await?, pending);
    store.settle_job(&job, &Outcome::Retry(failure(), HOUR)).await?;
    assert_eq!(store.request_rendition(&request(upload.image)).await?, pending);
    let due = store.publish_all().await?;
    assert_eq!(due, [write_notice(&upload)], "the thumbnail job waits for its next attempt");

    let upload = finished_upload(&store).await?;
    let first = queue_request(&store, upload.image).await?;
    let answer = store.request_rendition(&request(upload.image)).await?;
    assert_eq!(answer, Requested::Pending(first.task));
    Ok(())
}

async fn request_does_not_retry_a_failed_rendition(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let job = store.claim_job(&thumbnail_notice(&upload)).await?;
    store.settle_job(&job, &Outcome::Failed(failure())).await?;
    let eager = RenditionRequest { again_after: NOW, ..request(upload.image) };
    assert_eq!(store.request_rendition(&eager).await?, Requested::Recent(upload.task));

    let upload = finished_upload(&store).await?;
    let first = queue_request(&store, upload.image).await?;
    let job = store.claim_job(&notice(&first)).await?;
    store.settle_job(&job, &Outcome::Failed(failure())).await?;
    let eager = RenditionRequest { again_after: NOW, ..request(upload.image) };
    assert_eq!(store.request_rendition(&eager).await?, Requested::Recent(first.task));
    Ok(())
}

async fn cancelled_rendition_is_not_queued_again_immediately(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let first = queue_request(&store, upload.image).await?;
    assert!(store.cancel(first.task).await?);
    let immediate = request(upload.image);
    assert_eq!(store.request_rendition(&immediate).await?, Requested::Recent(first.task));
    let later = RenditionRequest { again_after: NOW, ..request(upload.image) };
    assert_eq!(store.request_rendition(&later).await?, Requested::Queued(later.task));
    Ok(())
}

async fn recent_rendition_is_not_made_again(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let first = queue_request(&store, upload.image).await?;
    let job = store.claim_job(&notice(&first)).await?;
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    let soon = request(upload.image);
    assert_eq!(store.request_rendition(&soon).await?, Requested::Recent(first.task));
    let later = RenditionRequest { again_after: NOW, ..soon };
    assert_eq!(store.request_rendition(&later).await?, Requested::Queued(later.task));
    Ok(())
}

async fn request_for_a_missing_image_returns_gone(store: TestStore) -> Result<()> {
    assert_eq!(store.request_rendition(&request(ImageId::new())).await?, Requested::Gone);
    let upload = store.accept_new_upload().await?;
    store.cancel(upload.task).await?;
    assert_eq!(store.request_rendition(&request(upload.image)).await?, Requested::Gone);
    assert_eq!(store.count_unpublished().await?, 0);
    Ok(())
}

async fn concurrent_requests_queue_one_job(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let stores = [
        store.another_store().await?,
        store.another_store().await?,
        store.another_store().await?,
        store.another_store().await?,
    ];
    let requests = (0..32).map(|at| {
        let store = stores[at % stores.len()].clone();
        async move { store.request_rendition(&request(upload.image)).await }
    });
    let answers = try_join_all(requests).await?;
    let winners: Vec<TaskId> = answers
        .iter()
        .filter_map(|answer| match answer {
            Requested::Queued(task) => Some(*task),
            _ => None,
        })
        .collect();
    let [winner] = winners[..] else { anyhow::bail!("{answers:?}") };
    let others = answers.iter().filter(|answer| **answer == Requested::Pending(winner));
    assert_eq!(others.count(), 31);
    assert_eq!(store.publish_all().await?.len(), 1);
    Ok(())
}

async fn cancelling_a_request_keeps_the_image(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let request = queue_request(&store, upload.image).await?;
    assert!(store.cancel(request.task).await?);
    let task = store.task(request.task).await?.context("no task")?;
    assert_eq!(task.status, Status::Cancelled);
    assert!(!task.image.context("no image")?.discarded);
    assert!(store.discarded(9, NOW).await?.is_empty());
    store.assert_unclaimable(&notice(&request), false).await?;
    assert_eq!(store.task_of(&upload).await?.status, Status::Succeeded);
    Ok(())
}

async fn cancelling_an_upload_cancels_its_requests(store: TestStore) -> Result<()> {
    // Its write job has not run, so it can be cancelled.
    let upload = store.accept_new_upload().await?;
    let job = store.claim_job(&thumbnail_notice(&upload)).await?;
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    let request = queue_request(&store, upload.image).await?;
    let running = store.claim_job(&notice(&request)).await?;

    assert!(store.cancel(upload.task).await?);
    let task = store.task(request.task).await?.context("no task")?;
    assert_eq!((task.status, task.progress.cancelled), (Status::Cancelled, 1));
    assert_eq!(store.settle(&running.lease, &thumbnail_succeeded()).await?, Settled::Stale);
    assert!(store.discarded(9, NOW).await?.is_empty(), "a worker may still be writing");
    store.tamper("update jobs set lease_until = null").await?;
    assert!(store.discarded(9, HOUR).await?.is_empty(), "not discarded for that long");
    assert_eq!(store.discarded(9, NOW).await?.len(), 1);
    Ok(())
}

async fn concurrent_request_and_cancel_leave_nothing_open(store: TestStore) -> Result<()> {
    for _ in 0..20 {
        let upload = store.accept_new_upload().await?;
        store.publish_all().await?;
        let job = store.claim_job(&thumbnail_notice(&upload)).await?;
        store.settle_job(&job, &thumbnail_succeeded()).await?;
        let request = request(upload.image);
        let (asked, cancelled) =
            tokio::join!(store.request_rendition(&request), store.cancel(upload.task));
        assert!(cancelled?);
        let made = store.task(request.task).await?.map(|task| task.status);
        match asked? {
            Requested::Queued(_) => assert_eq!(made, Some(Status::Cancelled)),
            answer => assert_eq!((answer, made), (Requested::Gone, None)),
        }
    }
    assert_eq!(store.count_unpublished().await?, 0);
    Ok(())
}

async fn failed_request_can_be_retried(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let request = queue_request(&store, upload.image).await?;
    let job = store.claim_job(&notice(&request)).await?;
    store.settle_job(&job, &Outcome::Failed(failure())).await?;
    assert_eq!(store.retry(&[request.task]).await?, [request.task]);
    let notices = store.publish_all().await?;
    let job = store.claim_job(&notices[0]).await?;
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    let task = store.task(request.task).await?.context("no task")?;
    assert_eq!(task.status, Status::Succeeded);
    Ok(())
}

async fn last_task_of_an_image_is_found_by_job_kind(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let request = queue_request(&store, upload.image).await?;
    store.accept_new_upload().await?;
    let thumbnails = store.last_task_of_image(upload.image, JobKind::Thumbnail).await?;
    assert_eq!(thumbnails, store.task(request.task).await?);
    let written = store.last_task_of_image(upload.image, JobKind::Write).await?;
    assert_eq!(written, Some(store.task_of(&upload).await?));
    assert_eq!(store.last_task_of_image(ImageId::new(), JobKind::Write).await?, None);
    Ok(())
}

async fn made_at_changes_only_with_the_bytes(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let before = store.image(upload.image).await?.context("no image")?.renditions;
    let request = queue_request(&store, upload.image).await?;
    let job = store.claim_job(&notice(&request)).await?;
    // The bytes of `medium` stay equal, those of `small` change.
    let renditions = vec![rendition("medium", 40_000), rendition("small", 9121)];
    let outcome = Outcome::Succeeded(vec![Effect::UpsertRenditions(renditions.clone())]);
    store.settle_job(&job, &outcome).await?;
    let after = store.image(upload.image).await?.context("no image")?.renditions;
    assert_eq!(without_made_at(&after), renditions);
    assert_eq!(after[0].made_at, before[0].made_at);
    assert!(after[1].made_at > before[1].made_at, "{after:?} after {before:?}");
    Ok(())
}

/// A request for a rendition whose bytes are damaged.
fn request_again(upload: &NewUpload, made: &Rendition) -> Result<RenditionRequest> {
    let damaged = DamagedRendition {
        of: upload.sha256,
        preset: made.preset.clone(),
        fingerprint: made.fingerprint.clone(),
        format: made.format,
        sha256: made.sha256,
        made_at: made.made_at.context("it was recorded")?,
    };
    Ok(RenditionRequest { damaged: Some(damaged), ..request(upload.image) })
}

/// The renditions on record.
async fn recorded(store: &TestStore, image: ImageId) -> Result<Vec<Rendition>> {
    Ok(store.image(image).await?.context("no image")?.renditions)
}

async fn damaged_rendition_is_forgotten_and_requested(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let before = recorded(&store, upload.image).await?;
    let request = request_again(&upload, &before[0])?;
    assert_eq!(store.request_rendition(&request).await?, Requested::Queued(request.task));
    assert_eq!(recorded(&store, upload.image).await?, before[1..], "only that record is removed");
    // The answer was lost.
    assert_eq!(store.request_rendition(&request).await?, Requested::Pending(request.task));
    assert_eq!(store.publish_all().await?, [notice(&request)]);

    let job = store.claim_job(&notice(&request)).await?;
    assert_eq!(job.image.renditions, before[1..], "the job sees what it has to make");
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    let after = recorded(&store, upload.image).await?;
    assert_eq!(without_made_at(&after), without_made_at(&before));
    assert!(after[0].made_at > before[0].made_at, "{after:?} after {before:?}");
    assert_eq!(after[1].made_at, before[1].made_at);

    // It is damaged again at once. The record decides, not how recent the last job is.
    let again = request_again(&upload, &after[0])?;
    assert_eq!(store.request_rendition(&again).await?, Requested::Queued(again.task));
    Ok(())
}

async fn damaged_rendition_is_requested_beside_open_work(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let before = recorded(&store, upload.image).await?;
    let running = queue_request(&store, upload.image).await?;
    store.publish_all().await?;
    let job = store.claim_job(&notice(&running)).await?;
    assert_eq!(job.image.renditions, before, "it will not make what is there");
    let request = request_again(&upload, &before[1])?;
    assert_eq!(store.request_rendition(&request).await?, Requested::Queued(request.task));
    let later = request_again(&upload, &before[1])?;
    assert_eq!(store.request_rendition(&later).await?, Requested::Pending(request.task));
    Ok(())
}

async fn concurrent_requests_for_a_damaged_rendition_queue_one_job(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let before = recorded(&store, upload.image).await?;
    let stores = [store.another_store().await?, store.another_store().await?];
    let requests = (0..32).map(|at| {
        let (store, request) = (&stores[at % stores.len()], request_again(&upload, &before[0]));
        async move { Ok::<_, anyhow::Error>(store.request_rendition(&request?).await?) }
    });
    let answers = try_join_all(requests).await?;
    let is_queued = |answer: &&Requested| matches!(answer, Requested::Queued(_));
    assert_eq!(answers.iter().filter(is_queued).count(), 1, "{answers:?}");
    let is_pending = |answer: &&Requested| matches!(answer, Requested::Pending(_));
    assert_eq!(answers.iter().filter(is_pending).count(), 31, "{answers:?}");
    assert_eq!(store.publish_all().await?.len(), 1);
    Ok(())
}

async fn rendition_that_was_made_again_is_not_forgotten(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let before = recorded(&store, upload.image).await?;
    let first = request_again(&upload, &before[0])?;
    assert_eq!(store.request_rendition(&first).await?, Requested::Queued(first.task));
    let job = store.claim_job(&notice(&first)).await?;
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    let after = recorded(&store, upload.image).await?;
    assert_eq!(after[0].sha256, before[0].sha256, "equal bytes");
    // A node that read the damaged bytes before asks only now.
    let late = request_again(&upload, &before[0])?;
    assert_eq!(store.request_rendition(&late).await?, Requested::Recent(first.task));
    assert_eq!(recorded(&store, upload.image).await?, after);
    Ok(())
}

async fn unreadable_original_is_tried_again_later(store: TestStore) -> Result<()> {
    for code in [ErrorCode::BlobMissing, ErrorCode::BlobDamaged] {
        let upload = store.accept_new_upload().await?;
        let job = store.claim_job(&thumbnail_notice(&upload)).await?;
        let failure = Failure::new(code, "not there");
        store.settle_job(&job, &Outcome::Failed(failure)).await?;
        // The write job ends the task.
        let job = store.claim_job(&write_notice(&upload)).await?;
        store.settle_job(&job, &write_succeeded()).await?;
        let soon = request(upload.image);
        assert_eq!(store.request_rendition(&soon).await?, Requested::Recent(upload.task));
        let later = RenditionRequest { again_after: NOW, ..soon };
        assert_eq!(store.request_rendition(&later).await?, Requested::Queued(later.task));
    }
    Ok(())
}
