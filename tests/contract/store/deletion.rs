//! Deleting images for good, and the references to blobs.

use anyhow::{Context, Result};
use safelight_domain::{
    BackfillKind, BackfillSpec, ContentHash, Image, ImageId, JobId, JobKind, JobNotice, Labels,
    Lane, Receipt, RemovedRendition, Status, Task, TaskId, TaskKind,
};
use safelight_store::{
    BackfillStep, ChildTask, Deletion, DeletionRequest, Effect, NewBackfill, NewUpload, Outcome,
    PageRequest, RenditionRequest, Requested, Settled,
};

use super::{
    promises,
    test_store::{
        HOUR, NOW, TestStore, failure, placeholder, rendition, renditions, thumbnail_notice,
        thumbnail_succeeded, upload, write_notice, write_succeeded,
    },
};

promises!(
    deletion_hides_the_image_and_redacts_its_row,
    deletion_cancels_unfinished_work,
    deleting_again_returns_the_same_task,
    deletion_waits_for_leases_and_caches,
    deletion_can_be_retried_but_not_cancelled,
    receipt_lists_configured_presets_and_removal_lists_all,
    finished_deletion_leaves_a_tombstone,
    cancelled_image_can_be_deleted,
    concurrent_deletions_create_one_task,
    work_queued_during_a_deletion_sees_the_image_discarded,
    pruning_a_receipt_keeps_the_image_deleted,
    references_are_images_that_still_have_bytes,
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

async fn start_deletion(store: &TestStore, image: ImageId) -> Result<DeletionRequest> {
    let request = request(image);
    assert_eq!(store.delete_image(&request).await?, Deletion::Accepted(request.task));
    Ok(request)
}

async fn task(store: &TestStore, id: TaskId) -> Result<Task> {
    store.task(id).await?.context("no task")
}

async fn image(store: &TestStore, id: ImageId) -> Result<Image> {
    store.image(id).await?.context("no image")
}

/// An upload whose jobs have succeeded.
async fn finished_upload(store: &TestStore) -> Result<NewUpload> {
    let upload = store.accept_new_upload().await?;
    store.finish_jobs(&upload).await?;
    Ok(upload)
}

async fn deletion_hides_the_image_and_redacts_its_row(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let request = start_deletion(&store, upload.image).await?;
    let left = image(&store, upload.image).await?;
    assert!(left.discarded && left.deleted);
    let visibility = upload.labels.visibility;
    assert_eq!(left.labels, Labels { visibility, ..Labels::default() });
    let facts = left.facts.context("facts")?;
    assert_eq!((facts.taken_at, facts.gps), (None, None));
    assert_eq!(left.sha256, upload.sha256, "the delete job needs it");
    let page = PageRequest { before: None, limit: 9 };
    assert!(store.list_images(None, &page).await?.images.is_empty());
    assert!(!store.is_blob_wanted(&upload.sha256).await?);
    assert!(
        store.discarded(9, NOW).await?.is_empty(),
        "the delete job removes it, not the janitor"
    );

    let task = task(&store, request.task).await?;
    assert_eq!(
        (task.kind, task.lane, task.status),
        (TaskKind::Delete, Lane::Interactive, Status::Queued)
    );
    assert_eq!(task.jobs.iter().map(|job| job.kind).collect::<Vec<_>>(), [JobKind::Delete]);
    assert_eq!(task.image.context("image")?.id, upload.image);
    assert!(store.publish_all().await?.contains(&notice(&request)));
    assert_eq!(store.claim_job(&notice(&request)).await?.image.renditions.len(), 2);
    Ok(())
}

async fn deletion_cancels_unfinished_work(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let write = store.claim_job(&write_notice(&upload)).await?;
    store.settle_job(&write, &write_succeeded()).await?;
    let running = store.claim_job(&thumbnail_notice(&upload)).await?;
    start_deletion(&store, upload.image).await?;
    assert_eq!(store.settle(&running.lease, &thumbnail_succeeded()).await?, Settled::Stale);
    let task = store.task_of(&upload).await?;
    assert_eq!((task.status, task.progress.cancelled), (Status::Cancelled, 1));
    assert!(image(&store, upload.image).await?.renditions.is_empty());
    let asked = RenditionRequest {
        image: upload.image,
        task: TaskId::new(),
        job: JobId::new(),
        max_attempts: 3,
        again_after: NOW,
        damaged: None,
        trace: None,
    };
    assert_eq!(store.request_rendition(&asked).await?, Requested::Gone);
    Ok(())
}

async fn deleting_again_returns_the_same_task(store: TestStore) -> Result<()> {
    assert_eq!(store.delete_image(&request(ImageId::new())).await?, Deletion::Unknown);
    let upload = finished_upload(&store).await?;
    let first = start_deletion(&store, upload.image).await?;
    let before = task(&store, first.task).await?;
    for again in [first.clone(), request(upload.image)] {
        assert_eq!(store.delete_image(&again).await?, Deletion::Before(first.task));
    }
    assert_eq!(task(&store, first.task).await?, before);
    let job = store.claim_job(&notice(&first)).await?;
    store.settle_job(&job, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 0 }])).await?;
    let again = store.delete_image(&request(upload.image)).await?;
    assert_eq!(again, Deletion::Before(first.task));
    assert_eq!(task(&store, first.task).await?.status, Status::Succeeded);
    Ok(())
}

async fn deletion_waits_for_leases_and_caches(store: TestStore) -> Result<()> {
    let busy = store.accept_new_upload().await?;
    store.claim_job_for(&write_notice(&busy), HOUR).await?;
    let waiting = start_deletion(&store, busy.image).await?;
    store.assert_unclaimable(&notice(&waiting), false).await?;

    let idle = store.accept_new_upload().await?;
    let cached = DeletionRequest { after: HOUR, ..request(idle.image) };
    store.delete_image(&cached).await?;
    store.assert_unclaimable(&notice(&cached), false).await?;
    assert!(store.publish_all().await?.iter().all(|due| due.kind != JobKind::Delete));
    assert_eq!(task(&store, cached.task).await?.jobs[0].retry_at, None, "it is not a retry");

    let free = store.accept_new_upload().await?;
    store.claim_job(&notice(&start_deletion(&store, free.image).await?)).await?;
    Ok(())
}

async fn deletion_can_be_retried_but_not_cancelled(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let deletion = start_deletion(&store, upload.image).await?;
    assert!(!store.cancel(deletion.task).await?);
    let job = store.claim_job(&notice(&deletion)).await?;
    assert!(!store.cancel(deletion.task).await?, "nor while its job runs");
    assert!(!store.cancel(upload.task).await?);
    store.settle_job(&job, &Outcome::Failed(failure())).await?;
    assert_eq!(store.retry(&[deletion.task, upload.task]).await?, [deletion.task]);
    store.publish_all().await?;
    let again = JobNotice { generation: job.lease.fence, ..notice(&deletion) };
    let job = store.claim_job(&again).await?;
    store.settle_job(&job, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 0 }])).await?;
    Ok(())
}

async fn receipt_lists_configured_presets_and_removal_lists_all(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let deletion = start_deletion(&store, upload.image).await?;
    let [medium, small] = <[_; 2]>::try_from(renditions()).expect("two");
    let named =
        RemovedRendition { preset: "small".to_owned(), format: small.format, bytes: small.bytes };
    let receipt = Receipt { bytes: upload.bytes, renditions: vec![named], proxies: None };
    assert_eq!(task(&store, deletion.task).await?.receipt.as_deref(), Some(&receipt));
    let removal = store.removal(deletion.task).await?.context("a removal")?;
    assert_eq!(removal.presets.iter().collect::<Vec<_>>(), ["medium", "small"]);
    assert_eq!(removal.objects, [upload.sha256, medium.sha256, small.sha256]);

    // Regardless of how much an attempt deleted before its worker died.
    assert!(store.forget_blob(&upload.sha256).await?);
    assert_eq!(store.removal(deletion.task).await?, Some(removal));
    let job = store.claim_job(&notice(&deletion)).await?;
    assert!(job.image.renditions.is_empty());
    store.settle_job(&job, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 3 }])).await?;
    let done = Receipt { proxies: Some(3), ..receipt };
    assert_eq!(task(&store, deletion.task).await?.receipt.as_deref(), Some(&done));
    assert_eq!(store.removal(deletion.task).await?, None);
    assert_eq!(store.removal(upload.task).await?, None, "not a deletion");
    Ok(())
}

async fn finished_deletion_leaves_a_tombstone(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let deletion = start_deletion(&store, upload.image).await?;
    let job = store.claim_job(&notice(&deletion)).await?;
    store.settle_job(&job, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 0 }])).await?;
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

async fn cancelled_image_can_be_deleted(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    assert!(store.cancel(upload.task).await?);
    assert_eq!(store.discarded(9, NOW).await?.len(), 1);
    let deletion = start_deletion(&store, upload.image).await?;
    assert!(store.discarded(9, NOW).await?.is_empty(), "now the delete job removes it");
    assert_eq!(image(&store, upload.image).await?.labels.title, None);
    store.mark_removed(upload.image).await?;
    let job = store.claim_job(&notice(&deletion)).await?;
    store.settle_job(&job, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 0 }])).await?;
    Ok(())
}

async fn concurrent_deletions_create_one_task(store: TestStore) -> Result<()> {
    for _ in 0..10 {
        let upload = store.accept_new_upload().await?;
        let job = store.claim_job(&write_notice(&upload)).await?;
        let requests = [request(upload.image), request(upload.image)];
        let (outcome, another) = (write_succeeded(), store.another_store().await?);
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

/// The child task of an earlier backfill step, and a retry by hand.
async fn work_queued_during_a_deletion_sees_the_image_discarded(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let job = store.claim_job(&write_notice(&upload)).await?;
    store.settle_job(&job, &Outcome::Failed(failure())).await?;
    let job = store.claim_job(&thumbnail_notice(&upload)).await?;
    store.settle_job(&job, &Outcome::Failed(failure())).await?;
    let backfill = NewBackfill {
        task: TaskId::new(),
        owner: safelight_domain::Owner::local(),
        spec: BackfillSpec::new(BackfillKind::Renditions),
    };
    store.create_backfill(&backfill).await?;
    start_deletion(&store, upload.image).await?;
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
    assert!(store.claim_job(&notice).await?.image.discarded, "the job sees it");
    Ok(())
}

async fn pruning_a_receipt_keeps_the_image_deleted(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let deletion = start_deletion(&store, upload.image).await?;
    let job = store.claim_job(&notice(&deletion)).await?;
    store.settle_job(&job, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 0 }])).await?;
    while store.prune_tasks(NOW, 100).await? > 0 {}
    assert_eq!(store.task(deletion.task).await?, None);
    assert_eq!(store.delete_image(&request(upload.image)).await?, Deletion::Forgotten);
    assert!(image(&store, upload.image).await?.deleted);
    Ok(())
}

async fn references_are_images_that_still_have_bytes(store: TestStore) -> Result<()> {
    let live = finished_upload(&store).await?;
    let busy = store.accept_new_upload().await?;
    let deleting = finished_upload(&store).await?;
    let removed = store.accept_new_upload().await?;
    let pending = start_deletion(&store, deleting.image).await?;
    store.cancel(removed.task).await?;
    store.mark_removed(removed.image).await?;
    let unknown = ContentHash::of(b"unknown");

    let hashes = [live.sha256, busy.sha256, deleting.sha256, removed.sha256, unknown];
    let found = store.references(&hashes).await?;
    let of = |sha256: ContentHash| found.iter().find(|found| found.sha256 == sha256);
    let recorded = &of(live.sha256).context("live")?.renditions;
    assert_eq!(super::test_store::without_made_at(recorded), renditions());
    assert!(!of(live.sha256).context("live")?.is_busy);
    assert!(of(busy.sha256).context("busy")?.is_busy, "its jobs are queued");
    assert!(of(deleting.sha256).is_some(), "a job will remove it");
    assert!(of(removed.sha256).is_none() && of(unknown).is_none());

    let job = store.claim_job(&notice(&pending)).await?;
    assert!(store.references(&[deleting.sha256]).await?[0].is_busy);
    store.settle_job(&job, &Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 0 }])).await?;
    assert!(store.references(&[deleting.sha256]).await?.is_empty());
    assert!(store.references(&[]).await?.is_empty());

    // One other image with the same bytes is enough.
    let twin = NewUpload { sha256: removed.sha256, ..upload() };
    store.accept_upload(&twin).await?;
    let thumbnail = store.claim_job(&thumbnail_notice(&twin)).await?;
    let made = Outcome::Succeeded(vec![
        Effect::UpsertRenditions(vec![rendition("small", 1)]),
        Effect::Placeholder(placeholder(1)),
    ]);
    store.settle_job(&thumbnail, &made).await?;
    assert_eq!(store.references(&[removed.sha256]).await?[0].renditions.len(), 1);
    Ok(())
}
