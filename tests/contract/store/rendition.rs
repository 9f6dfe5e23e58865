//! Asking for renditions that an image lacks.

use anyhow::{Context, Result};
use futures::future::try_join_all;
use safelight_domain::JobNotice;
use safelight_domain::{ImageId, JobId, JobKind, Lane, Status, TaskId, TaskKind, TraceContext};
use safelight_store::{
    Effect, NewUpload, Outcome, PageRequest, QueueCapacity, RenditionRequest, Requested, Settled,
    TaskFilter,
};

use super::{
    fixture::{
        Fixture, HOUR, NOW, failure, rendered, rendition, thumbnail_notice, unmade, write_notice,
        written,
    },
    promises,
};

promises!(
    a_request_is_a_task_like_any_other,
    a_request_keeps_its_trace,
    the_same_request_again_queues_nothing_more,
    what_is_under_way_is_not_asked_for_twice,
    what_failed_is_not_tried_again_by_itself,
    what_was_cancelled_is_not_tried_again_at_once,
    what_has_just_been_made_is_not_made_again,
    a_picture_that_is_gone_has_no_renditions,
    many_requests_at_once_queue_one_job,
    a_cancelled_request_keeps_its_image,
    a_cancelled_upload_takes_its_requests_along,
    a_request_and_a_cancel_at_once_leave_nothing_open,
    a_request_that_failed_is_tried_again_by_hand,
    the_last_task_tells_why_something_is_missing,
    a_rendition_says_when_its_bytes_were_made,
);

fn request(image: ImageId) -> RenditionRequest {
    RenditionRequest {
        image,
        task: TaskId::new(),
        job: JobId::new(),
        max_attempts: 3,
        again_after: HOUR,
        trace: None,
    }
}

fn notice(request: &RenditionRequest) -> JobNotice {
    let (kind, lane) = (JobKind::Thumbnail, Lane::Interactive);
    JobNotice { job: request.job, kind, lane, generation: 0, trace: None }
}

/// An upload whose jobs have succeeded, and whose messages are gone.
async fn made(store: &Fixture) -> Result<NewUpload> {
    let upload = store.accepted().await?;
    store.publish_all().await?;
    for (notice, outcome) in
        [(write_notice(&upload), written()), (thumbnail_notice(&upload), rendered())]
    {
        let job = store.claimed(&notice).await?;
        store.settled(&job, &outcome).await?;
    }
    Ok(upload)
}

/// A request that was queued.
async fn queued(store: &Fixture, image: ImageId) -> Result<RenditionRequest> {
    let request = request(image);
    assert_eq!(store.request_rendition(&request).await?, Requested::Queued(request.task));
    Ok(request)
}

async fn a_request_keeps_its_trace(store: Fixture) -> Result<()> {
    let upload = made(&store).await?;
    let trace = Some(TraceContext { trace: [0xab; 16], span: [7; 8], flags: 0 });
    let request = RenditionRequest { trace, ..request(upload.image) };
    assert_eq!(store.request_rendition(&request).await?, Requested::Queued(request.task));
    let due = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due;
    assert_eq!(due, [JobNotice { trace, ..notice(&request) }]);
    Ok(())
}

async fn a_request_is_a_task_like_any_other(store: Fixture) -> Result<()> {
    let upload = made(&store).await?;
    store.tamper("update images set owner = 'ada'").await?;
    let request = queued(&store, upload.image).await?;

    let task = store.task(request.task).await?.context("no task")?;
    assert_eq!((task.kind, task.lane), (TaskKind::Rendition, Lane::Interactive));
    assert_eq!((task.status, task.progress.total, task.jobs.len()), (Status::Queued, 1, 1));
    assert_eq!(task.jobs[0].max_attempts, 3);
    let of_ada = TaskFilter { owner: Some("ada".parse()?), ..TaskFilter::default() };
    let of_ada = TaskFilter { kind: Some(TaskKind::Rendition), ..of_ada };
    let page = store.list_tasks(&of_ada, &PageRequest { before: None, limit: 9 }).await?;
    assert_eq!(page.tasks, std::slice::from_ref(&task), "it has the owner of the image");
    assert_eq!(task.image.context("no image")?.id, upload.image);
    assert_eq!(store.publish_all().await?, [notice(&request)], "due at once");

    let job = store.claimed(&notice(&request)).await?;
    assert_eq!(job.image.renditions.len(), 2, "what there is already");
    let renditions = vec![rendition("tiny", 100)];
    store.settled(&job, &Outcome::Succeeded(vec![Effect::UpsertRenditions(renditions)])).await?;
    let task = store.task(request.task).await?.context("no task")?;
    assert_eq!(task.status, Status::Succeeded);
    assert_eq!(task.image.context("no image")?.renditions.len(), 3);
    Ok(())
}

async fn the_same_request_again_queues_nothing_more(store: Fixture) -> Result<()> {
    let upload = made(&store).await?;
    let request = RenditionRequest { again_after: NOW, ..queued(&store, upload.image).await? };
    assert_eq!(store.request_rendition(&request).await?, Requested::Pending(request.task));
    let job = store.claimed(&notice(&request)).await?;
    assert_eq!(store.request_rendition(&request).await?, Requested::Pending(request.task));
    store.settled(&job, &rendered()).await?;
    assert_eq!(store.request_rendition(&request).await?, Requested::Recent(request.task));
    assert_eq!(store.publish_all().await?, [notice(&request)]);
    Ok(())
}

async fn what_is_under_way_is_not_asked_for_twice(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let pending = Requested::Pending(upload.task);
    assert_eq!(store.request_rendition(&request(upload.image)).await?, pending);
    let job = store.claimed(&thumbnail_notice(&upload)).await?;
    assert_eq!(store.request_rendition(&request(upload.image)).await?, pending);
    store.settled(&job, &Outcome::Retry(failure(), HOUR)).await?;
    assert_eq!(store.request_rendition(&request(upload.image)).await?, pending);
    let due = store.publish_all().await?;
    assert_eq!(due, [write_notice(&upload)], "the other waits for its next attempt");

    let upload = made(&store).await?;
    let first = queued(&store, upload.image).await?;
    let answer = store.request_rendition(&request(upload.image)).await?;
    assert_eq!(answer, Requested::Pending(first.task));
    Ok(())
}

async fn what_failed_is_not_tried_again_by_itself(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let job = store.claimed(&thumbnail_notice(&upload)).await?;
    store.settled(&job, &Outcome::Failed(failure())).await?;
    let eager = RenditionRequest { again_after: NOW, ..request(upload.image) };
    assert_eq!(store.request_rendition(&eager).await?, Requested::Recent(upload.task));

    let upload = made(&store).await?;
    let first = queued(&store, upload.image).await?;
    let job = store.claimed(&notice(&first)).await?;
    store.settled(&job, &Outcome::Failed(failure())).await?;
    let eager = RenditionRequest { again_after: NOW, ..request(upload.image) };
    assert_eq!(store.request_rendition(&eager).await?, Requested::Recent(first.task));
    Ok(())
}

async fn what_was_cancelled_is_not_tried_again_at_once(store: Fixture) -> Result<()> {
    let upload = made(&store).await?;
    let first = queued(&store, upload.image).await?;
    assert!(store.cancel(first.task).await?);
    let at_once = request(upload.image);
    assert_eq!(store.request_rendition(&at_once).await?, Requested::Recent(first.task));
    let later = RenditionRequest { again_after: NOW, ..request(upload.image) };
    assert_eq!(store.request_rendition(&later).await?, Requested::Queued(later.task));
    Ok(())
}

async fn what_has_just_been_made_is_not_made_again(store: Fixture) -> Result<()> {
    let upload = made(&store).await?;
    let first = queued(&store, upload.image).await?;
    let job = store.claimed(&notice(&first)).await?;
    store.settled(&job, &rendered()).await?;
    let soon = request(upload.image);
    assert_eq!(store.request_rendition(&soon).await?, Requested::Recent(first.task));
    let later = RenditionRequest { again_after: NOW, ..soon };
    assert_eq!(store.request_rendition(&later).await?, Requested::Queued(later.task));
    Ok(())
}

async fn a_picture_that_is_gone_has_no_renditions(store: Fixture) -> Result<()> {
    assert_eq!(store.request_rendition(&request(ImageId::new())).await?, Requested::Gone);
    let upload = store.accepted().await?;
    store.cancel(upload.task).await?;
    assert_eq!(store.request_rendition(&request(upload.image)).await?, Requested::Gone);
    assert_eq!(store.count_unpublished().await?, 0);
    Ok(())
}

async fn many_requests_at_once_queue_one_job(store: Fixture) -> Result<()> {
    let upload = made(&store).await?;
    let stores = [
        store.another().await?,
        store.another().await?,
        store.another().await?,
        store.another().await?,
    ];
    let asked = (0..32).map(|at| {
        let store = stores[at % stores.len()].clone();
        async move { store.request_rendition(&request(upload.image)).await }
    });
    let answers = try_join_all(asked).await?;
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

async fn a_cancelled_request_keeps_its_image(store: Fixture) -> Result<()> {
    let upload = made(&store).await?;
    let request = queued(&store, upload.image).await?;
    assert!(store.cancel(request.task).await?);
    let task = store.task(request.task).await?.context("no task")?;
    assert_eq!(task.status, Status::Cancelled);
    assert!(!task.image.context("no image")?.discarded);
    assert!(store.discarded(9, NOW).await?.is_empty());
    store.refused(&notice(&request), false).await?;
    assert_eq!(store.task_of(&upload).await?.status, Status::Succeeded);
    Ok(())
}

async fn a_cancelled_upload_takes_its_requests_along(store: Fixture) -> Result<()> {
    // Its write job is still to come, so that it can be cancelled.
    let upload = store.accepted().await?;
    let job = store.claimed(&thumbnail_notice(&upload)).await?;
    store.settled(&job, &rendered()).await?;
    let request = queued(&store, upload.image).await?;
    let running = store.claimed(&notice(&request)).await?;

    assert!(store.cancel(upload.task).await?);
    let task = store.task(request.task).await?.context("no task")?;
    assert_eq!((task.status, task.progress.cancelled), (Status::Cancelled, 1));
    assert_eq!(store.settle(&running.lease, &rendered()).await?, Settled::Stale);
    assert!(store.discarded(9, NOW).await?.is_empty(), "a worker may still be writing");
    store.tamper("update jobs set lease_until = null").await?;
    assert!(store.discarded(9, HOUR).await?.is_empty(), "not yet that long ago");
    assert_eq!(store.discarded(9, NOW).await?.len(), 1);
    Ok(())
}

async fn a_request_and_a_cancel_at_once_leave_nothing_open(store: Fixture) -> Result<()> {
    for _ in 0..20 {
        let upload = store.accepted().await?;
        store.publish_all().await?;
        let job = store.claimed(&thumbnail_notice(&upload)).await?;
        store.settled(&job, &rendered()).await?;
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

async fn a_request_that_failed_is_tried_again_by_hand(store: Fixture) -> Result<()> {
    let upload = made(&store).await?;
    let request = queued(&store, upload.image).await?;
    let job = store.claimed(&notice(&request)).await?;
    store.settled(&job, &Outcome::Failed(failure())).await?;
    assert_eq!(store.retry(&[request.task]).await?, [request.task]);
    let notices = store.publish_all().await?;
    let job = store.claimed(&notices[0]).await?;
    store.settled(&job, &rendered()).await?;
    let task = store.task(request.task).await?.context("no task")?;
    assert_eq!(task.status, Status::Succeeded);
    Ok(())
}

async fn the_last_task_tells_why_something_is_missing(store: Fixture) -> Result<()> {
    let upload = made(&store).await?;
    let request = queued(&store, upload.image).await?;
    store.accepted().await?;
    let thumbnails = store.last_task_of_image(upload.image, JobKind::Thumbnail).await?;
    assert_eq!(thumbnails, store.task(request.task).await?);
    let written = store.last_task_of_image(upload.image, JobKind::Write).await?;
    assert_eq!(written, Some(store.task_of(&upload).await?));
    assert_eq!(store.last_task_of_image(ImageId::new(), JobKind::Write).await?, None);
    Ok(())
}

async fn a_rendition_says_when_its_bytes_were_made(store: Fixture) -> Result<()> {
    let upload = made(&store).await?;
    let before = store.image(upload.image).await?.context("no image")?.renditions;
    let request = queued(&store, upload.image).await?;
    let job = store.claimed(&notice(&request)).await?;
    // One of them comes out as before, the other does not.
    let renditions = vec![rendition("medium", 40_000), rendition("small", 9121)];
    let outcome = Outcome::Succeeded(vec![Effect::UpsertRenditions(renditions.clone())]);
    store.settled(&job, &outcome).await?;
    let after = store.image(upload.image).await?.context("no image")?.renditions;
    assert_eq!(unmade(&after), renditions);
    assert_eq!(after[0].made_at, before[0].made_at);
    assert!(after[1].made_at > before[1].made_at, "{after:?} after {before:?}");
    Ok(())
}
