//! Deleting images for good, and telling what nobody refers to.

use anyhow::{Context, Result};
use safelight_domain::JobNotice;
use safelight_domain::{
    BackfillKind, BackfillSpec, ContentHash, Image, ImageId, JobId, JobKind, Labels, Lane, Receipt,
    RemovedRendition, Status, Task, TaskId, TaskKind,
};
use safelight_store::{
    BackfillStep, ChildTask, Deletion, DeletionRequest, Effect, NewBackfill, NewUpload, Outcome,
    PageRequest, RenditionRequest, Requested, Settled,
};

use super::{
    fixture::{
        Fixture, HOUR, NOW, failure, placeholder, rendered, rendition, renditions,
        thumbnail_notice, upload, write_notice, written,
    },
    promises,
};

promises!(
    a_deleted_image_is_gone_and_its_row_tells_nothing,
    what_is_under_way_for_a_deleted_image_is_cancelled,
    deleting_again_gives_the_same_task,
    a_deletion_waits_for_leases_and_for_caches,
    a_deletion_cannot_be_cancelled_and_is_tried_again_by_hand,
    a_receipt_names_what_is_configured_and_a_removal_everything,
    the_end_of_a_deletion_leaves_a_tombstone,
    a_cancelled_image_can_be_deleted,
    of_many_who_delete_at_once_one_makes_a_task,
    what_is_queued_while_an_image_is_deleted_finds_it_gone,
    a_receipt_is_forgotten_with_its_task_and_the_image_stays_gone,
    references_are_images_whose_bytes_are_not_removed,
);

fn request(image: ImageId) -> DeletionRequest {
    let made = rendition("small", 1);
    DeletionRequest {
        image,
        task: TaskId::new(),
        job: JobId::new(),
        max_attempts: 5,
        after: NOW,
        presets: vec![(made.preset, made.fingerprint)],
        trace: None,
    }
}

fn notice(request: &DeletionRequest) -> JobNotice {
    let (kind, lane) = (JobKind::Delete, Lane::Interactive);
    JobNotice { job: request.job, kind, lane, generation: 0, trace: None }
}

async fn deleted(store: &Fixture, image: ImageId) -> Result<DeletionRequest> {
    let request = request(image);
    assert_eq!(store.delete_image(&request).await?, Deletion::Accepted(request.task));
    Ok(request)
}

async fn task(store: &Fixture, id: TaskId) -> Result<Task> {
    store.task(id).await?.context("no task")
}

async fn image(store: &Fixture, id: ImageId) -> Result<Image> {
    store.image(id).await?.context("no image")
}

/// An upload that is done.
async fn stored(store: &Fixture) -> Result<NewUpload> {
    let upload = store.accepted().await?;
    finish(store, &upload).await?;
    Ok(upload)
}

async fn finish(store: &Fixture, upload: &NewUpload) -> Result<()> {
    for (notice, outcome) in
        [(write_notice(upload), written()), (thumbnail_notice(upload), rendered())]
    {
        let job = store.claimed(&notice).await?;
        store.settled(&job, &outcome).await?;
    }
    Ok(())
}

async fn a_deleted_image_is_gone_and_its_row_tells_nothing(store: Fixture) -> Result<()> {
    let upload = stored(&store).await?;
    let request = deleted(&store, upload.image).await?;
    let left = image(&store, upload.image).await?;
    assert!(left.discarded && left.deleted);
    assert_eq!(left.labels, Labels::default());
    let facts = left.facts.context("facts")?;
    assert_eq!((facts.taken_at, facts.gps), (None, None));
    assert_eq!(left.sha256, upload.sha256, "the job needs it");
    let page = PageRequest { before: None, limit: 9 };
    assert!(store.list_images(None, &page).await?.images.is_empty());
    assert!(!store.is_blob_wanted(&upload.sha256).await?);
    assert!(store.discarded(9, NOW).await?.is_empty(), "a job removes it, not the janitor");

    let task = task(&store, request.task).await?;
    assert_eq!(
        (task.kind, task.lane, task.status),
        (TaskKind::Delete, Lane::Interactive, Status::Queued)
    );
    assert_eq!(task.jobs.iter().map(|job| job.kind).collect::<Vec<_>>(), [JobKind::Delete]);
    assert_eq!(task.image.context("image")?.id, upload.image);
    assert!(store.publish_all().await?.contains(&notice(&request)));
    assert_eq!(store.claimed(&notice(&request)).await?.image.renditions.len(), 2);
    Ok(())
}

async fn what_is_under_way_for_a_deleted_image_is_cancelled(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let write = store.claimed(&write_notice(&upload)).await?;
    store.settled(&write, &written()).await?;
    let running = store.claimed(&thumbnail_notice(&upload)).await?;
    deleted(&store, upload.image).await?;
    assert_eq!(store.settle(&running.lease, &rendered()).await?, Settled::Stale);
    let task = store.task_of(&upload).await?;
    assert_eq!((task.status, task.progress.cancelled), (Status::Cancelled, 1));
    assert!(image(&store, upload.image).await?.renditions.is_empty());
    let asked = RenditionRequest {
        image: upload.image,
        task: TaskId::new(),
        job: JobId::new(),
        max_attempts: 3,
        again_after: NOW,
        trace: None,
    };
    assert_eq!(store.request_rendition(&asked).await?, Requested::Gone);
    Ok(())
}

async fn deleting_again_gives_the_same_task(store: Fixture) -> Result<()> {
    assert_eq!(store.delete_image(&request(ImageId::new())).await?, Deletion::Unknown);
    let upload = stored(&store).await?;
    let first = deleted(&store, upload.image).await?;
    let before = task(&store, first.task).await?;
    for again in [first.clone(), request(upload.image)] {
        assert_eq!(store.delete_image(&again).await?, Deletion::Before(first.task));
    }
    assert_eq!(task(&store, first.task).await?, before);
    let job = store.claimed(&notice(&first)).await?;
    store.settled(&job, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 0 }])).await?;
    let again = store.delete_image(&request(upload.image)).await?;
    assert_eq!(again, Deletion::Before(first.task));
    assert_eq!(task(&store, first.task).await?.status, Status::Succeeded);
    Ok(())
}

async fn a_deletion_waits_for_leases_and_for_caches(store: Fixture) -> Result<()> {
    let busy = store.accepted().await?;
    store.claimed_for(&write_notice(&busy), HOUR).await?;
    let waiting = deleted(&store, busy.image).await?;
    store.refused(&notice(&waiting), false).await?;

    let idle = store.accepted().await?;
    let cached = DeletionRequest { after: HOUR, ..request(idle.image) };
    store.delete_image(&cached).await?;
    store.refused(&notice(&cached), false).await?;
    assert!(store.publish_all().await?.iter().all(|due| due.kind != JobKind::Delete));
    assert_eq!(task(&store, cached.task).await?.jobs[0].retry_at, None, "it is no retry");

    let free = store.accepted().await?;
    store.claimed(&notice(&deleted(&store, free.image).await?)).await?;
    Ok(())
}

async fn a_deletion_cannot_be_cancelled_and_is_tried_again_by_hand(store: Fixture) -> Result<()> {
    let upload = stored(&store).await?;
    let deletion = deleted(&store, upload.image).await?;
    assert!(!store.cancel(deletion.task).await?);
    let job = store.claimed(&notice(&deletion)).await?;
    assert!(!store.cancel(deletion.task).await?, "nor while it runs");
    assert!(!store.cancel(upload.task).await?);
    store.settled(&job, &Outcome::Failed(failure())).await?;
    assert_eq!(store.retry(&[deletion.task, upload.task]).await?, [deletion.task]);
    store.publish_all().await?;
    let again = JobNotice { generation: job.lease.fence, ..notice(&deletion) };
    let job = store.claimed(&again).await?;
    store.settled(&job, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 0 }])).await?;
    Ok(())
}

async fn a_receipt_names_what_is_configured_and_a_removal_everything(store: Fixture) -> Result<()> {
    let upload = stored(&store).await?;
    let deletion = deleted(&store, upload.image).await?;
    let [medium, small] = <[_; 2]>::try_from(renditions()).expect("two");
    let named =
        RemovedRendition { preset: "small".to_owned(), format: small.format, bytes: small.bytes };
    let receipt = Receipt { bytes: upload.bytes, renditions: vec![named], proxies: None };
    assert_eq!(task(&store, deletion.task).await?.receipt.as_deref(), Some(&receipt));
    let removal = store.removal(deletion.task).await?.context("a removal")?;
    assert_eq!(removal.presets.iter().collect::<Vec<_>>(), ["medium", "small"]);
    assert_eq!(removal.objects, [upload.sha256, medium.sha256, small.sha256]);

    // However much an attempt has removed before it died.
    assert!(store.forget_blob(&upload.sha256).await?);
    assert_eq!(store.removal(deletion.task).await?, Some(removal));
    let job = store.claimed(&notice(&deletion)).await?;
    assert!(job.image.renditions.is_empty());
    store.settled(&job, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 3 }])).await?;
    let done = Receipt { proxies: Some(3), ..receipt };
    assert_eq!(task(&store, deletion.task).await?.receipt.as_deref(), Some(&done));
    assert_eq!(store.removal(deletion.task).await?, None);
    assert_eq!(store.removal(upload.task).await?, None, "no deletion");
    Ok(())
}

async fn the_end_of_a_deletion_leaves_a_tombstone(store: Fixture) -> Result<()> {
    let upload = stored(&store).await?;
    let deletion = deleted(&store, upload.image).await?;
    let job = store.claimed(&notice(&deletion)).await?;
    store.settled(&job, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 0 }])).await?;
    let left = image(&store, upload.image).await?;
    assert!(left.deleted && left.renditions.is_empty() && left.placeholder.is_none());
    assert_eq!(left.sha256, ContentHash([0; 32]), "not even the hash");
    assert_eq!(store.existing_images(&[upload.image]).await?, [upload.image]);
    assert!(store.discarded(9, NOW).await?.is_empty());
    let late = store
        .settle(&job.lease, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 1 }]))
        .await?;
    assert_eq!(late, Settled::Stale);
    Ok(())
}

async fn a_cancelled_image_can_be_deleted(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    assert!(store.cancel(upload.task).await?);
    assert_eq!(store.discarded(9, NOW).await?.len(), 1);
    let deletion = deleted(&store, upload.image).await?;
    assert!(store.discarded(9, NOW).await?.is_empty(), "from here on it is the job's");
    assert_eq!(image(&store, upload.image).await?.labels.title, None);
    store.mark_removed(upload.image).await?;
    let job = store.claimed(&notice(&deletion)).await?;
    store.settled(&job, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 0 }])).await?;
    Ok(())
}

async fn of_many_who_delete_at_once_one_makes_a_task(store: Fixture) -> Result<()> {
    for _ in 0..10 {
        let upload = store.accepted().await?;
        let job = store.claimed(&write_notice(&upload)).await?;
        let requests = [request(upload.image), request(upload.image)];
        let (outcome, another) = (written(), store.another().await?);
        let (one, other, settled) = tokio::join!(
            store.delete_image(&requests[0]),
            another.delete_image(&requests[1]),
            store.settle(&job.lease, &outcome),
        );
        let (one, other) = (one?, other?);
        settled?;
        let accepted =
            [one, other].into_iter().filter(|one| matches!(one, Deletion::Accepted(_))).count();
        assert_eq!(accepted, 1, "{one:?} {other:?}");
        let task = store.task_of(&upload).await?;
        assert!(task.status.is_final(), "{task:?}");
    }
    Ok(())
}

/// A child of a backfill that was looked at before, and a retry by hand.
async fn what_is_queued_while_an_image_is_deleted_finds_it_gone(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let job = store.claimed(&write_notice(&upload)).await?;
    store.settled(&job, &Outcome::Failed(failure())).await?;
    let job = store.claimed(&thumbnail_notice(&upload)).await?;
    store.settled(&job, &Outcome::Failed(failure())).await?;
    let backfill = NewBackfill {
        task: TaskId::new(),
        owner: safelight_domain::Owner::local(),
        spec: BackfillSpec::new(BackfillKind::Renditions),
    };
    store.create_backfill(&backfill).await?;
    deleted(&store, upload.image).await?;
    assert!(store.retry(&[upload.task]).await?.is_empty());

    let (task, job) = (TaskId::new(), JobId::new());
    let child = ChildTask {
        task,
        kind: TaskKind::Rendition,
        image: upload.image,
        jobs: vec![(job, JobKind::Thumbnail)],
        import: None,
    };
    let step = BackfillStep {
        work: vec![child],
        max_attempts: 3,
        ..BackfillStep::of(backfill.task, None)
    };
    assert!(store.advance_backfill(&step).await?);
    let notice =
        JobNotice { job, kind: JobKind::Thumbnail, lane: Lane::Bulk, generation: 0, trace: None };
    assert!(store.claimed(&notice).await?.image.discarded, "its handler sees that");
    Ok(())
}

async fn a_receipt_is_forgotten_with_its_task_and_the_image_stays_gone(
    store: Fixture,
) -> Result<()> {
    let upload = store.accepted().await?;
    let deletion = deleted(&store, upload.image).await?;
    let job = store.claimed(&notice(&deletion)).await?;
    store.settled(&job, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 0 }])).await?;
    while store.prune_tasks(NOW, 100).await? > 0 {}
    assert_eq!(store.task(deletion.task).await?, None);
    assert_eq!(store.delete_image(&request(upload.image)).await?, Deletion::Forgotten);
    assert!(image(&store, upload.image).await?.deleted);
    Ok(())
}

async fn references_are_images_whose_bytes_are_not_removed(store: Fixture) -> Result<()> {
    let live = stored(&store).await?;
    let busy = store.accepted().await?;
    let going = stored(&store).await?;
    let gone = store.accepted().await?;
    let pending = deleted(&store, going.image).await?;
    store.cancel(gone.task).await?;
    store.mark_removed(gone.image).await?;
    let nobody = ContentHash::of(b"nobody has this");

    let hashes = [live.sha256, busy.sha256, going.sha256, gone.sha256, nobody];
    let found = store.references(&hashes).await?;
    let of = |sha256: ContentHash| found.iter().find(|found| found.sha256 == sha256);
    let recorded = &of(live.sha256).context("live")?.renditions;
    assert_eq!(super::fixture::unmade(recorded), renditions());
    assert!(!of(live.sha256).context("live")?.is_busy);
    assert!(of(busy.sha256).context("busy")?.is_busy, "its jobs are queued");
    assert!(of(going.sha256).is_some(), "a job will remove it");
    assert!(of(gone.sha256).is_none() && of(nobody).is_none());

    let job = store.claimed(&notice(&pending)).await?;
    assert!(store.references(&[going.sha256]).await?[0].is_busy);
    store.settled(&job, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 0 }])).await?;
    assert!(store.references(&[going.sha256]).await?.is_empty());
    assert!(store.references(&[]).await?.is_empty());

    // Another with the same bytes is enough.
    let twin = NewUpload { sha256: gone.sha256, ..upload() };
    store.accept_it(&twin).await?;
    let thumbnail = store.claimed(&thumbnail_notice(&twin)).await?;
    let made = Outcome::Succeeded(vec![
        Effect::UpsertRenditions(vec![rendition("small", 1)]),
        Effect::Placeholder(placeholder(1)),
    ]);
    store.settled(&thumbnail, &made).await?;
    assert_eq!(store.references(&[gone.sha256]).await?[0].renditions.len(), 1);
    Ok(())
}
