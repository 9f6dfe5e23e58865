//! The collection of garbage: objects that nothing refers to.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use safelight_blobs::{BlobKey, Blobs, Stored};
use safelight_domain::{
    Backfill, BackfillKind, BackfillSpec, BackfillState, ContentHash, ErrorCode, Failure, GcPhase,
    GcProgress, ImageFormat, InstallationId, ItemOutcome, JOB_VERSION, JobKind, JobNotice,
    TakeBack, TaskId, WorkerId,
};
use safelight_store::{BackfillStep, Claim, Lease, NewBackfill, NewUpload, Outcome, ReportLine};

use super::{
    cancel::stored_upload,
    delete::image,
    test_worker::{TestWorker, eventually, picture, within},
};
use crate::{
    backfill::BackfillCoordinator,
    maintenance::Service,
    removal::{Quarantine, by_blob},
    services::quarantined_objects,
};

/// A collection that is not refused, however little the database knows.
fn forced() -> BackfillSpec {
    BackfillSpec { force: true, ..BackfillSpec::new(BackfillKind::Gc) }
}

/// A collection that is refused if too much would go.
fn careful() -> BackfillSpec {
    BackfillSpec::new(BackfillKind::Gc)
}

fn take_back(which: TakeBack) -> BackfillSpec {
    BackfillSpec { take_back: Some(which), ..careful() }
}

async fn start(test: &TestWorker, spec: BackfillSpec) -> TaskId {
    let new = NewBackfill { task: TaskId::new(), owner: safelight_domain::Owner::local(), spec };
    assert!(test.parts.store.create_backfill(&new).await.expect("begin"));
    new.task
}

async fn load(test: &TestWorker, id: TaskId) -> Backfill {
    *test.task(id).await.backfill.expect("a backfill")
}

/// Steps until the backfill has ended; returns it and its report.
async fn finish(
    test: &TestWorker,
    coordinator: &BackfillCoordinator,
    id: TaskId,
) -> (Backfill, Vec<ReportLine>) {
    within("the backfill ends", async {
        loop {
            Box::pin(coordinator.step()).await.expect("a step");
            let backfill = load(test, id).await;
            if backfill.state == BackfillState::Ended {
                let report = test.parts.store.backfill_report(id, None, 999).await;
                return (backfill, report.expect("report"));
            }
        }
    })
    .await
}

/// Runs a backfill; returns it when it has ended, and its report.
async fn run(test: &TestWorker, spec: BackfillSpec) -> (Backfill, Vec<ReportLine>) {
    let id = start(test, spec).await;
    finish(test, &test.stepping_coordinator(), id).await
}

/// Runs the janitor's look through the quarantine once.
async fn sweep(test: &TestWorker) {
    quarantined_objects(&test.parts).run().await.expect("a sweep");
}

/// The files in the quarantine.
fn quarantined(test: &TestWorker) -> Vec<PathBuf> {
    let files = |folder: &Path| fs::read_dir(folder).into_iter().flatten();
    let shards = files(&test.quarantine()).map(|shard| shard.expect("an entry").path());
    shards.flat_map(|shard| files(&shard).map(|file| file.expect("an entry").path())).collect()
}

/// Renames what is in the quarantine as if it had been moved there `age` earlier.
fn age_quarantined(test: &TestWorker, age: Duration) {
    for path in quarantined(test) {
        let name = path.file_name().expect("a name").to_str().expect("UTF-8").to_owned();
        let (time, rest) = name.split_once('=').expect("a time");
        let time = time.parse::<u128>().expect("milliseconds") - age.as_millis();
        fs::rename(&path, path.with_file_name(format!("{time}={rest}"))).expect("rename");
    }
}

/// Uploads of nine bytes each.
async fn stored_uploads(test: &TestWorker, count: u32) -> Vec<NewUpload> {
    let mut uploads = Vec::new();
    for n in 0..count {
        uploads.push(stored_upload(test, format!("upload {n:02}").as_bytes()).await);
    }
    uploads
}

/// Old blobs of nine bytes each that no row refers to.
async fn store_orphans(test: &TestWorker, name: &str, count: u32) -> Vec<BlobKey> {
    let hashes = (0..count).map(|n| ContentHash::of(format!("{name} {n}").as_bytes()));
    let keys: Vec<_> = hashes.map(BlobKey::Blob).collect();
    for key in &keys {
        store_orphan(test, key).await;
    }
    keys
}

fn count_stored(test: &TestWorker, keys: &[BlobKey]) -> usize {
    keys.iter().filter(|key| test.blob_path(key).exists()).count()
}

/// Sets the file's modification time to two hours ago.
fn make_old(path: &Path) {
    let two_hours_ago = SystemTime::now() - Duration::from_hours(2);
    let file = fs::File::options().append(true).open(path).expect("a file");
    file.set_modified(two_hours_ago).expect("a time");
}

fn rendition_of(of: ContentHash) -> BlobKey {
    BlobKey::Rendition {
        of,
        preset: "small".to_owned(),
        fingerprint: "0123456789ab".to_owned(),
        format: ImageFormat::Jpeg,
    }
}

/// Stores an old object that no row refers to.
async fn store_orphan(test: &TestWorker, key: &BlobKey) {
    test.parts.blobs.put(key, "left over".into()).await.expect("put");
    make_old(&test.blob_path(key));
}

fn skipped(backfill: &Backfill, reason: &str) -> u64 {
    backfill.skipped.get(reason).copied().unwrap_or(0)
}

/// All blobs and renditions.
async fn everything_stored(blobs: &Blobs) -> Vec<Stored> {
    let (mut found, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let walked = blobs.walk(cursor.as_deref(), 99).await.expect("a walk");
        found.extend(walked.objects);
        cursor = walked.next;
        if cursor.is_none() {
            return found;
        }
    }
}

#[tokio::test]
async fn garbage_collection_removes_only_unreferenced_objects() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let upload = test.upload(&picture()).await;
    test.wait_until_ended(upload.task).await;
    let live = image(&test, &upload).await;
    let renditions = live.renditions.iter().map(|made| BlobKey::rendition(live.sha256, made));
    let kept: Vec<BlobKey> = renditions.chain([BlobKey::Blob(live.sha256)]).collect();
    for key in &kept {
        make_old(&test.blob_path(key));
    }
    let unused = ContentHash::of(b"left over");
    let garbage = [BlobKey::Blob(unused), rendition_of(unused), rendition_of(live.sha256)];
    for key in &garbage {
        store_orphan(&test, key).await;
    }
    let young = BlobKey::Blob(ContentHash::of(b"young"));
    test.parts.blobs.put(&young, "young".into()).await.expect("put");
    let foreign = test.blob_path(&BlobKey::Blob(unused)).with_file_name("notes.txt");
    fs::write(&foreign, "not ours").expect("write");
    make_old(&foreign);

    let (plan, lines) = run(&test, BackfillSpec { dry_run: true, ..forced() }).await;
    assert_eq!((plan.planned, plan.succeeded, plan.expected), (3, 0, Some(9)));
    assert!(lines.iter().all(|line| line.outcome == ItemOutcome::Planned), "{lines:?}");
    let mut named: Vec<_> = lines.iter().filter_map(|line| line.source.clone()).collect();
    named.sort();
    let mut expected = garbage.each_ref().map(|key| key.path().to_string());
    expected.sort();
    assert_eq!(named, expected);
    assert!(garbage.iter().all(|key| test.blob_path(key).exists()), "a dry run removes nothing");

    let (done, lines) = run(&test, forced()).await;
    assert_eq!((done.planned, done.succeeded, done.expected), (3, 3, Some(9)));
    assert_eq!((skipped(&done, "in_use"), skipped(&done, "too_young")), (4, 1));
    let removed = lines.iter().filter(|line| line.outcome == ItemOutcome::Succeeded);
    assert!(removed.clone().all(|line| line.detail.as_deref() == Some("9 bytes")));
    assert_eq!((removed.count(), skipped(&done, "unknown_name")), (3, 1));
    assert!(garbage.iter().all(|key| !test.blob_path(key).exists()));
    assert!(
        kept.iter().chain([&young]).all(|key| test.blob_path(key).exists()) && foreign.exists()
    );
    assert_eq!(image(&test, &upload).await, live);
    assert_eq!((test.trash_count(), quarantined(&test).len()), (0, 3));
    assert_eq!(run(&test, forced()).await.0.planned, 0, "nothing is left");
}

/// Collects more objects than fit into a step or a page.
#[tokio::test]
async fn garbage_collection_spans_steps_and_pages() {
    let test = TestWorker::new(&[]).await;
    let keys: Vec<_> =
        (0..600_u32).map(|n| BlobKey::Blob(ContentHash::of(&n.to_le_bytes()))).collect();
    for key in &keys {
        let path = test.blob_path(key);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, "left over").expect("write");
        make_old(&path);
    }
    let (done, lines) = run(&test, forced()).await;
    assert_eq!((done.succeeded, lines.len()), (600, 600));
    assert_eq!((count_stored(&test, &keys), quarantined(&test).len()), (0, 600));

    let (back, lines) = run(&test, take_back(TakeBack::All)).await;
    assert_eq!((back.succeeded, lines.len(), back.expected), (600, 600, Some(600)));
    assert_eq!(count_stored(&test, &keys), 600);
    assert!(!test.quarantine().exists(), "empty folders are left");
}

#[tokio::test]
async fn garbage_collection_leaves_cancelled_uploads_to_janitor() {
    let test = TestWorker::new(&[]).await;
    let upload = stored_upload(&test, b"cancelled").await;
    make_old(&test.blob_path(&BlobKey::Blob(upload.sha256)));
    test.parts.store.cancel(upload.task).await.expect("cancel");
    assert_eq!(skipped(&run(&test, forced()).await.0, "in_use"), 1);
    test.parts.store.mark_removed(upload.image).await.expect("mark");
    assert_eq!(run(&test, forced()).await.0.succeeded, 1);
}

/// A job may have stored a rendition that it has not recorded yet.
#[tokio::test]
async fn garbage_collection_keeps_unrecorded_renditions() {
    let test = TestWorker::new(&[]).await;
    let upload = stored_upload(&test, &picture()).await;
    let lease = claim(&test, &upload).await;
    let made = rendition_of(upload.sha256);
    store_orphan(&test, &made).await;
    assert_eq!(skipped(&run(&test, careful()).await.0, "in_use"), 2);
    assert!(test.blob_path(&made).exists());
    let failed = Outcome::Failed(Failure::new(ErrorCode::CorruptImage, "damaged"));
    test.parts.store.settle(&lease, &failed).await.expect("settle");
    assert_eq!(
        run(&test, careful()).await.0.succeeded,
        1,
        "after the job failed, nothing will record it; renditions alone are never too much"
    );
    assert!(
        !test.blob_path(&made).exists() && test.blob_path(&BlobKey::Blob(upload.sha256)).exists()
    );
}

async fn claim(test: &TestWorker, upload: &NewUpload) -> Lease {
    let (job, kind) = upload.jobs[1];
    assert_eq!(kind, JobKind::Thumbnail);
    let notice = JobNotice { job, kind, lane: upload.lane, generation: 0, trace: None };
    let (worker, lease) = (WorkerId::new(), Duration::from_hours(1));
    match test.parts.store.claim(&notice, false, worker, lease, JOB_VERSION).await {
        Ok(Claim::Run(job)) => job.lease,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn collection_with_an_empty_database_is_refused() {
    let test = TestWorker::new(&[]).await;
    let orphans = store_orphans(&test, "orphan", 3).await;
    let (refused, lines) = run(&test, careful()).await;
    let problem = refused.problem.expect("a reason");
    assert!(problem.contains("knows no image") && problem.contains("--force"), "{problem}");
    assert_eq!((lines.len(), count_stored(&test, &orphans)), (0, 3));

    let (plan, _) = run(&test, BackfillSpec { dry_run: true, ..careful() }).await;
    assert_eq!((plan.planned, plan.problem), (3, None), "a dry run is not refused");
    let survey = GcProgress::of_cursor(plan.cursor.as_deref()).survey;
    assert_eq!((survey.originals.objects, survey.unreferenced.objects), (3, 3));
    assert!(survey.refusal.is_some_and(|why| why.contains("knows no image")));

    assert_eq!(run(&test, forced()).await.0.succeeded, 3);
    assert_eq!((count_stored(&test, &orphans), quarantined(&test).len()), (0, 3));
}

#[tokio::test]
async fn collection_of_more_than_a_tenth_is_refused() {
    let test = TestWorker::new(&[]).await;
    stored_uploads(&test, 10).await;
    let mut orphans = store_orphans(&test, "orphan", 1).await;
    assert_eq!(run(&test, careful()).await.0.succeeded, 1, "one of eleven");
    assert_eq!(count_stored(&test, &orphans), 0);

    orphans = store_orphans(&test, "another", 2).await;
    // Slowly, so that the first step alone would not be too much.
    let slow = BackfillSpec { rate: Some(1e6), ..careful() };
    let problem = run(&test, slow).await.0.problem.expect("two of twelve are refused");
    assert!(problem.contains("2 of 12 originals"), "{problem}");
    assert_eq!(count_stored(&test, &orphans), 2);
    assert_eq!(run(&test, forced()).await.0.succeeded, 2);
}

/// A database can be replaced, or fall behind, after the survey.
#[tokio::test]
async fn every_step_of_a_collection_is_checked() {
    let test = TestWorker::new(&[]).await;
    stored_uploads(&test, 10).await;
    let coordinator = test.stepping_coordinator();
    let surveyed = async || {
        let id = start(&test, careful()).await;
        within("the survey ends", async {
            loop {
                Box::pin(coordinator.step()).await.expect("a step");
                let cursor = load(&test, id).await.cursor;
                if GcProgress::of_cursor(cursor.as_deref()).phase == GcPhase::Collect {
                    return id;
                }
            }
        })
        .await
    };
    let id = surveyed().await;
    let orphans = store_orphans(&test, "orphan", 5).await;
    let problem = finish(&test, &coordinator, id).await.0.problem.expect("a reason");
    assert!(problem.contains("more than a tenth"), "{problem}");
    assert_eq!(count_stored(&test, &orphans), 5);

    fs::remove_file(test.blob_path(&orphans[0])).expect("remove");
    for key in &orphans[2..] {
        fs::remove_file(test.blob_path(key)).expect("remove");
    }
    let id = surveyed().await;
    test.parts.store.keep_unknown(Duration::from_hours(1)).await.expect("keep");
    let problem = finish(&test, &coordinator, id).await.0.problem.expect("a reason");
    assert!(problem.contains("older copy"), "{problem}");
    assert_eq!(count_stored(&test, &orphans), 1);
}

/// Nodes of 0.1.0 had no survey: their cursor is the path of the last object.
#[tokio::test]
async fn collection_of_an_older_node_is_continued() {
    let test = TestWorker::new(&[]).await;
    let mut orphans = store_orphans(&test, "orphan", 20).await;
    orphans.sort_by_key(|key| key.path().to_string());
    for spec in [careful(), forced()] {
        let is_forced = spec.force;
        let id = start(&test, spec).await;
        let step = BackfillStep {
            to: Some(orphans[9].path().to_string()),
            ..BackfillStep::of(id, load(&test, id).await.cursor)
        };
        assert!(test.parts.store.advance_backfill(&step).await.expect("a step"));
        let ended = finish(&test, &test.stepping_coordinator(), id).await.0;
        assert_eq!(ended.succeeded, if is_forced { 10 } else { 0 }, "{:?}", ended.problem);
        let left: Vec<_> = orphans.iter().filter(|key| test.blob_path(key).exists()).collect();
        let all: Vec<_> = orphans.iter().collect();
        assert_eq!(left, if is_forced { &all[..10] } else { &all[..] });
    }
}

#[tokio::test]
async fn quarantine_is_emptied_only_after_its_time() {
    let keep = Duration::from_hours(24);
    let keep_ms = keep.as_millis().to_string();
    let test = TestWorker::new(&[("SAFELIGHT_QUARANTINE_MS", &keep_ms)]).await;
    let orphans = store_orphans(&test, "orphan", 2).await;
    run(&test, forced()).await;
    age_quarantined(&test, keep.checked_sub(Duration::from_mins(1)).expect("longer than a minute"));
    sweep(&test).await;
    assert_eq!(quarantined(&test).len(), 2, "a minute is left");

    age_quarantined(&test, Duration::from_mins(2));
    test.parts.store.keep_unknown(Duration::from_hours(1)).await.expect("keep");
    sweep(&test).await;
    assert_eq!(quarantined(&test).len(), 2, "the database may be an older copy");
    test.parts.store.keep_unknown(Duration::ZERO).await.expect("no longer");
    sweep(&test).await;
    assert_eq!((quarantined(&test).len(), count_stored(&test, &orphans)), (0, 0));
    assert!(!test.quarantine().exists(), "empty folders are left");
}

#[tokio::test]
async fn collection_without_quarantine_deletes_at_once() {
    let test = TestWorker::new(&[("SAFELIGHT_QUARANTINE_MS", "0")]).await;
    let orphans = store_orphans(&test, "orphan", 2).await;
    assert_eq!(run(&test, forced()).await.0.succeeded, 2);
    assert_eq!((quarantined(&test).len(), count_stored(&test, &orphans)), (0, 0));
}

/// A collection that dies between the move and the second look, or whose database was replaced.
#[tokio::test]
async fn janitor_returns_quarantined_objects_that_images_need() {
    let test = TestWorker::new(&[]).await;
    let (needed, deleted) =
        (stored_upload(&test, b"needed").await, stored_upload(&test, b"deleted").await);
    let blobs = &test.parts.blobs;
    let now = blobs.clock().await.expect("a clock");
    let unknown = store_orphans(&test, "orphan", 1).await;
    for object in everything_stored(blobs).await {
        let moved = blobs.quarantine(&object, TaskId::new(), now).await.expect("move");
        assert!(moved.is_some(), "{object:?}");
    }
    test.parts.store.cancel(deleted.task).await.expect("cancel");
    let _janitor = test.services(&["quarantine"]);
    let returned = test.blob_path(&BlobKey::Blob(needed.sha256));
    eventually("the blob is back", async || returned.exists()).await;
    assert_eq!(quarantined(&test).len(), 2, "the rest waits");
    assert!(!test.blob_path(&BlobKey::Blob(deleted.sha256)).exists());
    assert_eq!(count_stored(&test, &unknown), 0);
    test.discarded_images().remove().await.expect("remove");
    assert_eq!(quarantined(&test).len(), 1, "a removal leaves nothing in the quarantine");
}

#[tokio::test]
async fn take_back_moves_objects_of_one_collection_to_free_places() {
    let test = TestWorker::new(&[]).await;
    let first = store_orphans(&test, "first", 3).await;
    let run_of_first = run(&test, forced()).await.0.id;
    let second = store_orphans(&test, "second", 2).await;
    run(&test, forced()).await;
    // Stored again, with other bytes to tell them apart.
    test.parts.blobs.put(&first[0], "stored again".into()).await.expect("put");

    let which = TakeBack::Run(run_of_first);
    let (plan, lines) = run(&test, BackfillSpec { dry_run: true, ..take_back(which) }).await;
    assert_eq!((plan.planned, skipped(&plan, "stored_again"), lines.len()), (2, 1, 2));
    assert_eq!((count_stored(&test, &first), quarantined(&test).len()), (1, 5));

    let (done, lines) = run(&test, take_back(which)).await;
    assert_eq!((done.succeeded, skipped(&done, "stored_again"), done.expected), (2, 1, Some(3)));
    let mut sources: Vec<_> = lines.iter().filter_map(|line| line.source.clone()).collect();
    sources.sort();
    let mut paths: Vec<_> = first.iter().map(|key| key.path().to_string()).collect();
    paths.sort();
    assert_eq!((sources, count_stored(&test, &first)), (paths, 3));
    assert_eq!(test.parts.blobs.read(&first[0], 99).await.expect("read"), "stored again");
    assert_eq!(count_stored(&test, &second), 0, "another collection");

    assert_eq!(run(&test, take_back(TakeBack::All)).await.0.succeeded, 2);
    assert_eq!(count_stored(&test, &second), 2);
    let unknown = take_back(TakeBack::Run(TaskId::new()));
    let problem = run(&test, unknown).await.0.problem.expect("a reason");
    assert!(problem.contains("nothing of the collection"), "{problem}");
}

#[tokio::test]
async fn concurrent_collections_lose_nothing() {
    let test = TestWorker::new(&[]).await;
    let upload = stored_upload(&test, b"needed").await;
    let orphans = store_orphans(&test, "orphan", 8).await;
    let quarantine = Quarantine::new(
        test.parts.store.clone(),
        test.parts.blobs.clone(),
        Duration::from_hours(1),
    );
    let now = test.parts.blobs.clock().await.expect("a clock");
    let objects = everything_stored(&test.parts.blobs).await;
    let (quarantine, objects) = (&quarantine, &objects);
    let collect = async |run: TaskId| {
        let with_blob =
            |object: &Stored| Some((object.key.as_ref()?.blob()?, false, object.clone()));
        for group in by_blob(objects.iter().filter_map(with_blob)) {
            quarantine.set_aside(&group, run, now).await.expect("moved");
        }
    };
    tokio::join!(collect(TaskId::new()), collect(TaskId::new()));
    assert!(test.blob_path(&BlobKey::Blob(upload.sha256)).exists());
    assert_eq!((count_stored(&test, &orphans), quarantined(&test).len()), (0, 8));
}

/// A deletion must not leave the image in the quarantine.
#[tokio::test]
async fn deleted_blob_leaves_the_quarantine() {
    let test = TestWorker::new(&[]).await;
    let upload = stored_upload(&test, b"deleted").await;
    store_orphan(&test, &rendition_of(upload.sha256)).await;
    let orphans = store_orphans(&test, "orphan", 1).await;
    let claimed = claim(&test, &upload).await;
    let failed = Outcome::Failed(Failure::new(ErrorCode::CorruptImage, "damaged"));
    test.parts.store.settle(&claimed, &failed).await.expect("settle");
    run(&test, forced()).await;
    assert_eq!(quarantined(&test).len(), 2);
    let blobs = &test.parts.blobs;
    let of_upload = blobs.quarantined_of(&upload.sha256).await.expect("list");
    assert_eq!(of_upload.len(), 1);
    blobs.delete_from_quarantine(&of_upload[0]).await.expect("delete");
    assert_eq!(quarantined(&test).len(), 1);
    assert!(test.parts.blobs.take_back_key(&orphans[0]).await.expect("take back"));
    assert!(!test.parts.blobs.take_back_key(&rendition_of(upload.sha256)).await.expect("nothing"));
    assert_eq!(count_stored(&test, &orphans), 1);
}

#[tokio::test]
async fn store_of_another_installation_is_never_collected() {
    let test = TestWorker::new(&[]).await;
    let orphans = store_orphans(&test, "orphan", 2).await;
    let ours = test.parts.store.installation().await.expect("an installation").id;
    let other = InstallationId(TaskId::new().0);
    for spec in [forced(), careful(), take_back(TakeBack::All)] {
        test.parts.blobs.replace_mark(other).await.expect("mark");
        let problem = run(&test, spec).await.0.problem.expect("a reason");
        assert!(problem.contains("another installation"), "{problem}");
        assert_eq!((count_stored(&test, &orphans), quarantined(&test).len()), (2, 0));
    }
    // The store can be replaced in the middle, too.
    test.parts.blobs.replace_mark(ours).await.expect("mark");
    let id = start(&test, forced()).await;
    let coordinator = test.stepping_coordinator();
    within("the survey ends", async {
        let phase = async || GcProgress::of_cursor(load(&test, id).await.cursor.as_deref()).phase;
        while phase().await == GcPhase::Survey {
            Box::pin(coordinator.step()).await.expect("a step");
        }
    })
    .await;
    test.parts.blobs.replace_mark(other).await.expect("mark");
    assert!(finish(&test, &coordinator, id).await.0.problem.is_some());
    assert_eq!(count_stored(&test, &orphans), 2);
}

#[tokio::test]
async fn verify_takes_a_missing_original_back() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let upload = test.upload(&picture()).await;
    test.wait_until_ended(upload.task).await;
    let now = test.parts.blobs.clock().await.expect("a clock");
    let objects = everything_stored(&test.parts.blobs).await;
    let original = objects.iter().find(|one| one.key == Some(BlobKey::Blob(upload.sha256)));
    let moved = test.parts.blobs.quarantine(original.expect("stored"), TaskId::new(), now).await;
    assert!(moved.expect("moved").is_some());
    let (verified, lines) = run(&test, BackfillSpec::new(BackfillKind::Verify)).await;
    assert_eq!(verified.succeeded, 1, "{lines:?}");
    assert!(test.blob_path(&BlobKey::Blob(upload.sha256)).exists());
}
