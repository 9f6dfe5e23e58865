//! Imports: new images, equal bytes, quotas, and cancelling.

use anyhow::{Context, Result};
use futures::future::{join, join_all};
use safelight_domain::{
    BackfillKind, BackfillSpec, ContentHash, ImageFormat, ImageId, ItemOutcome, JobKind, JobNotice,
    Labels, Lane, Owner, Quota, Status, TaskId, TaskKind, Visibility,
};
use safelight_store::{Accepted, BackfillStep, ChildTask, ImportedImage, NewUpload};

use super::{corrupt_outcome, load_backfill, queue_children, spec, start_backfill};
use crate::contract::store::{
    promises,
    test_store::{
        self, TestStore, thumbnail_notice, thumbnail_succeeded, write_notice, write_succeeded,
    },
};

promises!(
    import_creates_images,
    concurrent_imports_of_equal_bytes_create_one_image,
    concurrent_imports_and_uploads_never_exceed_a_quota,
    images_with_equal_bytes_are_found_per_owner,
    intact_images_with_equal_bytes_come_first,
    cancelled_import_discards_unfinished_images,
);

/// The child task of an imported image, with a write and a thumbnail job.
fn import_child(bytes: &[u8]) -> ChildTask {
    let import = ImportedImage {
        source: "/photos/a.jpg".to_owned(),
        sha256: ContentHash::of(bytes),
        bytes: 1,
        format: ImageFormat::Jpeg,
        labels: Labels {
            title: Some("A".to_owned()),
            tags: vec!["x".to_owned(), "y".to_owned()],
            filename: None,
            visibility: None,
        },
    };
    let jobs = JobKind::jobs_of_new_image();
    let (task, kind, image) = (TaskId::new(), TaskKind::Upload, ImageId::new());
    ChildTask { task, kind, image, jobs, import: Some(import) }
}

async fn import_creates_images(store: TestStore) -> Result<()> {
    let mut import = BackfillSpec::new(BackfillKind::Import);
    import.visibility = Some(Visibility::Private);
    let id = start_backfill(&store, import).await?;
    let child = import_child(b"a");
    let image = child.image;
    let labels = child.import.as_ref().context("no import")?.labels.clone();
    let labels = Labels { visibility: Some(Visibility::Private), ..labels };
    let work = vec![child.clone()];
    let step = BackfillStep { work, max_attempts: 3, is_last: true, ..BackfillStep::of(id, None) };
    assert!(store.advance_backfill(&step).await?);
    let made = store.image(image).await?.context("no image")?;
    assert_eq!((made.labels, made.bytes), (labels, 1));
    assert_eq!(made.stored_at, None);
    assert_eq!(made.owner, "ada".parse()?);
    for (index, outcome) in [write_succeeded(), thumbnail_succeeded()].iter().enumerate() {
        let (job, kind) = child.jobs[index];
        let notice = JobNotice { job, kind, lane: Lane::Bulk, generation: 0, trace: None };
        let job = store.claim_job(&notice).await?;
        store.settle_job(&job, outcome).await?;
    }
    assert_eq!(store.collect_results(id, 9).await?, 1);
    let report = store.backfill_report(id, None, 9).await?;
    assert_eq!(report.len(), 1);
    assert_eq!((report[0].id, report[0].outcome), (image.0, ItemOutcome::Succeeded));
    assert_eq!(report[0].source.as_deref(), Some("/photos/a.jpg"));
    assert!(store.image(image).await?.context("no image")?.stored_at.is_some());
    Ok(())
}

async fn concurrent_imports_of_equal_bytes_create_one_image(store: TestStore) -> Result<()> {
    let import = BackfillSpec::new(BackfillKind::Import);
    let (first, second) =
        (start_backfill(&store, import.clone()).await?, start_backfill(&store, import).await?);
    let step = |id: TaskId, work: &[&[u8]]| BackfillStep {
        work: work.iter().map(|bytes| import_child(bytes)).collect(),
        max_attempts: 3,
        is_last: true,
        ..BackfillStep::of(id, None)
    };
    let steps = [step(first, &[b"a", b"b"]), step(second, &[b"b", b"c"])];
    let (one, other) =
        tokio::join!(store.advance_backfill(&steps[0]), store.advance_backfill(&steps[1]));
    assert!(one? && other?);
    let counts = [load_backfill(&store, first).await?, load_backfill(&store, second).await?];
    assert_eq!(counts[0].planned + counts[1].planned, 3, "{counts:#?}");
    let skipped = counts.iter().filter_map(|one| one.skipped.get("duplicate")).sum::<u64>();
    assert_eq!(skipped, 1);
    assert_eq!(store.images_with_blobs(&"ada".parse()?, &[ContentHash::of(b"b")]).await?.len(), 1);
    let mut lines = store.backfill_report(first, None, 9).await?;
    lines.extend(store.backfill_report(second, None, 9).await?);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0].source.as_deref(), Some("/photos/a.jpg"));

    // Images that failed for good can be imported again.
    let work: Vec<_> = steps[0].work.iter().chain(&steps[1].work).collect();
    for child in work {
        if store.task(child.task).await?.is_some() {
            for (job, kind) in child.jobs.clone() {
                let notice = JobNotice { job, kind, lane: Lane::Bulk, generation: 0, trace: None };
                let job = store.claim_job(&notice).await?;
                store.settle_job(&job, &corrupt_outcome()).await?;
            }
        }
    }
    let third = start_backfill(&store, BackfillSpec::new(BackfillKind::Import)).await?;
    assert!(store.advance_backfill(&step(third, &[b"a"])).await?);
    assert_eq!(load_backfill(&store, third).await?.planned, 1);
    Ok(())
}

async fn concurrent_imports_and_uploads_never_exceed_a_quota(store: TestStore) -> Result<()> {
    let quota = Quota { images: Some(5), bytes: None };
    let mut import = BackfillSpec::new(BackfillKind::Import);
    import.quota = quota;
    let images = |name: &str| -> Vec<ChildTask> {
        (0..3).map(|at| import_child(format!("{name}{at}").as_bytes())).collect()
    };
    let others = [store.another_store().await?, store.another_store().await?];
    let mut steps = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let task = start_backfill(&store, import.clone()).await?;
        let work = images(name);
        steps.push(BackfillStep {
            work,
            max_attempts: 3,
            is_last: true,
            ..BackfillStep::of(task, None)
        });
    }
    let ada: Owner = "ada".parse()?;
    let new = || NewUpload { owner: ada.clone(), quota, ..test_store::upload() };
    let uploads = [new(), new(), new()];
    let at = |at: usize| &others[at % others.len()];
    let (counted, uploaded) = join(
        join_all(steps.iter().enumerate().map(|(n, step)| at(n).advance_backfill(step))),
        join_all(uploads.iter().enumerate().map(|(n, upload)| at(n).accept(upload))),
    )
    .await;
    let (mut imported, mut accepted) = (0, 0);
    for upload in uploaded {
        accepted += u64::from(matches!(upload?, Accepted::Yes(_)));
    }
    for (step, counted) in steps.iter().zip(counted) {
        assert!(counted?, "each step applies");
        let current = load_backfill(&store, step.task).await?;
        assert_eq!(current.planned + current.refused, 3);
        imported += current.planned;
        let lines = store.backfill_report(step.task, None, 9).await?;
        assert_eq!(lines.len() as u64, current.refused, "{lines:?}");
        for line in lines {
            assert_eq!(
                (line.outcome, line.reason.as_deref(), line.source.as_deref()),
                (ItemOutcome::Failed, Some("over_quota"), Some("/photos/a.jpg"))
            );
        }
    }
    assert_eq!((imported + accepted, store.usage(&ada).await?.images), (5, 5));

    // Without a quota another import creates the rejected images, and no others.
    let work = ["a", "b", "c", "d"].iter().flat_map(|name| images(name)).collect();
    let again = start_backfill(&store, BackfillSpec::new(BackfillKind::Import)).await?;
    let step =
        BackfillStep { work, max_attempts: 3, is_last: true, ..BackfillStep::of(again, None) };
    assert!(store.advance_backfill(&step).await?);
    let current = load_backfill(&store, again).await?;
    assert_eq!((current.planned, current.skipped["duplicate"]), (12 - imported, imported));
    Ok(())
}

async fn images_with_equal_bytes_are_found_per_owner(store: TestStore) -> Result<()> {
    let first = store.accept_new_upload().await?;
    let second = NewUpload { sha256: first.sha256, ..test_store::upload() };
    store.accept_upload(&second).await?;
    let unknown = ContentHash::of(b"unknown");
    let found = store.images_with_blobs(&Owner::local(), &[unknown, first.sha256]).await?;
    assert_eq!(found, [(first.sha256, first.image)]);
    store.cancel(first.task).await?;
    let of_ada = store.images_with_blobs(&"ada".parse()?, &[first.sha256]).await?;
    assert_eq!(of_ada, [], "ada has none");
    let found = store.images_with_blobs(&Owner::local(), &[first.sha256]).await?;
    assert_eq!(found, [(first.sha256, second.image)], "discarded images do not count");
    Ok(())
}

async fn intact_images_with_equal_bytes_come_first(store: TestStore) -> Result<()> {
    let bad = store.accept_new_upload().await?;
    for notice in [write_notice(&bad), thumbnail_notice(&bad)] {
        let job = store.claim_job(&notice).await?;
        store.settle_job(&job, &corrupt_outcome()).await?;
    }
    let same = [bad.sha256];
    assert_eq!(store.images_with_blobs(&Owner::local(), &same).await?, [(bad.sha256, bad.image)]);
    let good = NewUpload { sha256: bad.sha256, ..test_store::upload() };
    store.accept_upload(&good).await?;
    assert_eq!(
        store.images_with_blobs(&Owner::local(), &same).await?,
        [(bad.sha256, good.image)],
        "the unfinished one"
    );
    Ok(())
}

async fn cancelled_import_discards_unfinished_images(store: TestStore) -> Result<()> {
    let id = start_backfill(&store, BackfillSpec::new(BackfillKind::Import)).await?;
    let work: Vec<ChildTask> = [&b"a"[..], b"b", b"c"].map(import_child).into();
    let step = BackfillStep {
        work: work.clone(),
        max_attempts: 3,
        is_last: true,
        ..BackfillStep::of(id, None)
    };
    assert!(store.advance_backfill(&step).await?);
    for (index, outcome) in [write_succeeded(), thumbnail_succeeded()].iter().enumerate() {
        let (job, kind) = work[0].jobs[index];
        let notice = JobNotice { job, kind, lane: Lane::Bulk, generation: 0, trace: None };
        let job = store.claim_job(&notice).await?;
        store.settle_job(&job, outcome).await?;
    }
    // Another backfill makes a rendition of the second image.
    let other = start_backfill(&store, spec()).await?;
    let rendition = queue_children(&store, other, &[work[1].image]).await?;
    assert!(store.cancel(id).await?);
    assert_eq!(store.collect_results(id, 9).await?, 3);
    let current = load_backfill(&store, id).await?;
    assert_eq!((current.succeeded, current.cancelled_images), (1, 2));
    for (child, discarded) in work.iter().zip([false, true, true]) {
        let image = store.image(child.image).await?.context("no image")?;
        assert_eq!(image.discarded, discarded, "{image:?}");
    }
    let made = store.task(rendition[0].task).await?.context("no task")?;
    assert_eq!((made.status, made.progress.cancelled), (Status::Cancelled, 1));
    assert_eq!(store.publish_all().await?, [], "no notice remains");
    Ok(())
}
