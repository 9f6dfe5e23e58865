//! Backfills: walks, what they hand out, tallies, pausing, cancelling, retrying, and what is forgotten.

use anyhow::{Context, Result};
use futures::future::{join, join_all};
use safelight_domain::JobNotice;
use safelight_domain::{
    Backfill, BackfillKind, BackfillSpec, BackfillState, ContentHash, ErrorCode, Failure,
    ImageFormat, ImageId, ItemOutcome, JobId, JobKind, Labels, Lane, Owner, Quota, Status, TaskId,
    TaskKind, Visibility, WorkerId,
};
use safelight_store::{
    Accepted, BackfillStep, ChildTask, Effect, ImageFilter, ImportedImage, NewBackfill, NewUpload,
    Outcome, ReportLine,
};
use uuid::Uuid;

use super::{
    fixture::{
        Fixture, HOUR, NOW, failure, rendered, rendition, renditions, thumbnail_notice, unmade,
        write_notice, written,
    },
    promises,
};

promises!(
    a_backfill_is_a_task_that_shows_how_it_stands,
    what_a_step_has_done_itself_is_counted_and_has_lines,
    beginning_again_changes_nothing,
    an_id_that_is_taken_is_refused,
    one_coordinator_leads_until_it_is_silent,
    a_lead_is_renewed_only_when_it_must_be,
    paused_ones_wait_for_a_place,
    a_walk_sees_each_image_of_its_time_once,
    an_id_from_a_slow_clock_hides_no_image,
    a_walk_can_be_narrowed,
    a_step_makes_tasks_and_report_lines,
    a_step_uses_up_its_share_of_the_rate,
    a_step_counts_only_where_the_walk_stands,
    a_paused_walk_takes_no_step,
    what_has_nothing_left_to_hand_out_cannot_be_paused,
    a_dry_run_only_counts,
    an_import_makes_images,
    of_imports_of_the_same_at_once_one_takes_it_in,
    no_race_of_imports_and_uploads_passes_a_quota,
    equal_bytes_are_found,
    equal_bytes_of_sound_images_come_first,
    what_is_under_way_or_failed_is_an_obstacle,
    a_later_success_clears_a_failure,
    a_tally_counts_forgets_and_ends,
    a_backfill_with_failures_fails_and_keeps_them,
    what_was_deleted_meanwhile_did_not_fail,
    failed_images_are_handed_out_again,
    one_failed_image_tried_again_reopens_its_backfill,
    a_cancelled_backfill_ends_with_what_it_handed_out,
    a_claim_knows_what_its_backfill_wants,
    a_cancelled_import_discards_what_it_has_under_way,
    a_verified_image_keeps_what_was_repaired,
    a_report_is_read_in_pages,
    old_tasks_are_forgotten_and_failed_ones_kept,
    an_old_failed_backfill_leaves_its_failed_tasks,
    an_old_backfill_is_forgotten_with_its_report,
);

const COORDINATOR: fn() -> WorkerId = WorkerId::new;

fn spec() -> BackfillSpec {
    BackfillSpec::new(BackfillKind::Renditions)
}

async fn begun(store: &Fixture, spec: BackfillSpec) -> Result<TaskId> {
    let new = NewBackfill { task: TaskId::new(), owner: "ada".parse()?, spec };
    store.create_backfill(&new).await?;
    Ok(new.task)
}

async fn backfill(store: &Fixture, id: TaskId) -> Result<Backfill> {
    let task = store.task(id).await?.context("no task")?;
    Ok(*task.backfill.context("no backfill")?)
}

/// An upload whose jobs have succeeded.
async fn stored(store: &Fixture) -> Result<NewUpload> {
    let upload = store.accepted().await?;
    for (notice, outcome) in
        [(write_notice(&upload), written()), (thumbnail_notice(&upload), rendered())]
    {
        let job = store.claimed(&notice).await?;
        store.settled(&job, &outcome).await?;
    }
    store.publish_all().await?;
    Ok(upload)
}

fn child(image: ImageId) -> ChildTask {
    let jobs = vec![(JobId::new(), JobKind::Thumbnail)];
    ChildTask { task: TaskId::new(), kind: TaskKind::Rendition, image, jobs, import: None }
}

fn skipped(id: Uuid) -> ReportLine {
    let reason = Some("up_to_date".to_owned());
    ReportLine { id, outcome: ItemOutcome::Skipped, reason, detail: None, source: None }
}

/// A step that hands out one image and goes to `to`.
fn step(task: TaskId, from: Option<&str>, to: &str, image: ImageId) -> BackfillStep {
    BackfillStep {
        to: Some(to.to_owned()),
        work: vec![child(image)],
        max_attempts: 3,
        ..BackfillStep::of(task, from.map(str::to_owned))
    }
}

/// The last step of a walk, which hands out `images`. Answers with the children.
async fn handed_out(store: &Fixture, task: TaskId, images: &[ImageId]) -> Result<Vec<ChildTask>> {
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

async fn ended(store: &Fixture, child: &ChildTask, outcome: &Outcome) -> Result<()> {
    let job = store.claimed(&notice(child)).await?;
    store.settled(&job, outcome).await
}

fn failed() -> Outcome {
    Outcome::Failed(Failure::new(ErrorCode::CorruptImage, "cut short"))
}

async fn a_backfill_is_a_task_that_shows_how_it_stands(store: Fixture) -> Result<()> {
    let mut spec = spec();
    spec.presets = vec!["small".to_owned()];
    spec.rate = Some(2.5);
    let id = begun(&store, spec.clone()).await?;
    let task = store.task(id).await?.context("no task")?;
    assert_eq!(
        (task.kind, task.lane, task.status),
        (TaskKind::Backfill, Lane::Bulk, Status::Queued)
    );
    let stands = task.backfill.context("no backfill")?;
    assert_eq!((stands.spec, stands.owner), (spec, "ada".parse()?));
    assert_eq!((stands.state, stands.paused), (BackfillState::Walking, false));
    assert_eq!((stands.expected, stands.planned), (None, 0));
    Ok(())
}

async fn what_a_step_has_done_itself_is_counted_and_has_lines(store: Fixture) -> Result<()> {
    let line = |outcome| ReportLine { outcome, ..skipped(Uuid::now_v7()) };
    let step = |id, outcome, from: Option<&str>, to: &str, is_last| BackfillStep {
        to: Some(to.to_owned()),
        done: vec![line(outcome), line(outcome)],
        passed: [("in_use".to_owned(), 40)].into(),
        settled: vec![skipped(Uuid::now_v7())],
        is_last,
        ..BackfillStep::of(id, from.map(str::to_owned))
    };
    for (dry_run, outcome) in [(false, ItemOutcome::Succeeded), (true, ItemOutcome::Planned)] {
        let id =
            begun(&store, BackfillSpec { dry_run, ..BackfillSpec::new(BackfillKind::Gc) }).await?;
        let first = step(id, outcome, None, "a", false);
        assert!(store.advance_backfill(&first).await?);
        assert!(!store.advance_backfill(&first).await?, "it stands elsewhere now");
        assert!(store.advance_backfill(&step(id, outcome, Some("a"), "b", true)).await?);
        store.collect_results(id, 9).await?;
        let stands = backfill(&store, id).await?;
        assert_eq!((stands.state, stands.planned), (BackfillState::Ended, 4));
        assert_eq!(stands.succeeded, if dry_run { 0 } else { 4 });
        assert_eq!(
            stands.skipped,
            [("in_use".to_owned(), 80), ("up_to_date".to_owned(), 2)].into()
        );
        assert_eq!(stands.walked(), 86);
        let lines = store.backfill_report(id, None, 99).await?;
        assert_eq!(lines.iter().filter(|line| line.outcome == outcome).count(), 4);
        assert_eq!(lines.len(), if dry_run { 4 } else { 6 }, "what passed has none");
        let task = store.task(id).await?.context("no task")?;
        assert_eq!(task.status, Status::Succeeded);
    }
    Ok(())
}

async fn beginning_again_changes_nothing(store: Fixture) -> Result<()> {
    let new = NewBackfill { task: TaskId::new(), owner: Owner::local(), spec: spec() };
    store.create_backfill(&new).await?;
    let before = store.task(new.task).await?;
    assert!(store.create_backfill(&new).await?);
    assert_eq!(store.task(new.task).await?, before);
    Ok(())
}

async fn a_lead_is_renewed_only_when_it_must_be(store: Fixture) -> Result<()> {
    let coordinator = COORDINATOR();
    begun(&store, spec()).await?;
    let led = store.lead_backfills(coordinator, HOUR, 9).await?;
    store.tamper("create table before as select foreman_until from backfills").await?;
    let same = "select count(*) from backfills natural join before";
    assert_eq!(store.lead_backfills(coordinator, HOUR, 9).await?, led);
    assert_eq!(store.count(same).await?, 1, "nothing was written");
    assert_eq!(store.lead_backfills(coordinator, 2 * HOUR, 9).await?, led);
    assert_eq!(store.count(same).await?, 0, "less than it wants was left");
    Ok(())
}

async fn an_id_that_is_taken_is_refused(store: Fixture) -> Result<()> {
    let mut spec = spec();
    spec.rate = Some(0.1);
    let new = NewBackfill { task: TaskId::new(), owner: safelight_domain::Owner::local(), spec };
    assert!(store.create_backfill(&new).await?);
    let before = store.task(new.task).await?;
    let other = NewBackfill { spec: BackfillSpec::new(BackfillKind::Verify), ..new.clone() };
    assert!(!store.create_backfill(&other).await?, "it was begun to do something else");
    assert_eq!(store.task(new.task).await?, before);
    let upload = store.accepted().await?;
    let before = store.task(upload.task).await?;
    assert!(!store.create_backfill(&NewBackfill { task: upload.task, ..new }).await?);
    assert_eq!(store.task(upload.task).await?, before);
    assert_eq!(store.lead_backfills(COORDINATOR(), HOUR, 9).await?.len(), 1);
    Ok(())
}

async fn one_coordinator_leads_until_it_is_silent(store: Fixture) -> Result<()> {
    let (first, second) = (COORDINATOR(), COORDINATOR());
    let id = begun(&store, spec()).await?;
    let led = store.lead_backfills(first, HOUR, 9).await?;
    assert_eq!(led.iter().map(|backfill| backfill.id).collect::<Vec<_>>(), [id]);
    assert!(store.lead_backfills(second, HOUR, 9).await?.is_empty());
    // The lead that runs out at once is the last that the first takes.
    assert_eq!(store.lead_backfills(first, NOW, 9).await?.len(), 1);
    assert_eq!(store.lead_backfills(second, HOUR, 9).await?.len(), 1);
    assert!(store.lead_backfills(first, HOUR, 9).await?.is_empty());
    Ok(())
}

/// Everything that was accepted before a backfill.
async fn everything(store: &Fixture, until: TaskId) -> Result<ImageFilter> {
    let until = backfill(store, until).await?.started_at;
    Ok(ImageFilter { until, created_after: None, format: None })
}

async fn paused_ones_wait_for_a_place(store: Fixture) -> Result<()> {
    let (paused, active) = (begun(&store, spec()).await?, begun(&store, spec()).await?);
    assert!(store.pause_backfill(paused, true).await?);
    let coordinator = COORDINATOR();
    for expected in [active, active] {
        let led = store.lead_backfills(coordinator, HOUR, 1).await?;
        assert_eq!(led.iter().map(|backfill| backfill.id).collect::<Vec<_>>(), [expected]);
    }
    assert_eq!(store.lead_backfills(coordinator, HOUR, 2).await?.len(), 2);
    Ok(())
}

async fn an_id_from_a_slow_clock_hides_no_image(store: Fixture) -> Result<()> {
    let early = TaskId::new();
    let image = store.accepted().await?.image;
    let new = NewBackfill { task: early, owner: safelight_domain::Owner::local(), spec: spec() };
    assert!(store.create_backfill(&new).await?);
    store.accepted().await?;
    let filter = everything(&store, early).await?;
    let seen = store.walk_images(&filter, None, 9).await?;
    assert_eq!(seen.iter().map(|image| image.id).collect::<Vec<_>>(), [image]);
    assert_eq!(store.count_images(&filter).await?, 1);
    Ok(())
}

async fn a_walk_sees_each_image_of_its_time_once(store: Fixture) -> Result<()> {
    let mut images = Vec::new();
    for _ in 0..5 {
        images.push(store.accepted().await?.image);
    }
    let id = begun(&store, spec()).await?;
    let later = store.accepted().await?;
    let filter = everything(&store, id).await?;
    assert_eq!(store.count_images(&filter).await?, 5);
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = store.walk_images(&filter, after, 2).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        seen.extend(page.iter().map(|image| image.id));
    }
    assert_eq!(seen, images);
    assert!(!seen.contains(&later.image));
    Ok(())
}

async fn a_walk_can_be_narrowed(store: Fixture) -> Result<()> {
    let jpeg = store.accepted().await?;
    let png = NewUpload { format: ImageFormat::Png, ..super::fixture::upload() };
    store.accept_it(&png).await?;
    let gone = store.accepted().await?;
    store.cancel(gone.task).await?;
    let made = store.image(png.image).await?.context("no image")?.created_at;
    let all = everything(&store, begun(&store, spec()).await?).await?;
    let seen = async |filter: &ImageFilter| -> Result<Vec<ImageId>> {
        let page = store.walk_images(filter, None, 9).await?;
        assert_eq!(store.count_images(filter).await?, page.len() as u64);
        Ok(page.iter().map(|image| image.id).collect())
    };
    assert_eq!(seen(&all).await?, [jpeg.image, png.image], "what was discarded is left out");
    let pngs = ImageFilter { format: Some(ImageFormat::Png), ..all.clone() };
    assert_eq!(seen(&pngs).await?, [png.image]);
    let recent = ImageFilter { created_after: Some(made), ..all.clone() };
    assert_eq!(seen(&recent).await?, [png.image]);
    let walked = store.walk_images(&all, None, 1).await?;
    assert!(walked[0].renditions.is_empty());
    let done = stored(&store).await?;
    let all = everything(&store, begun(&store, spec()).await?).await?;
    let walked = store.walk_images(&all, Some(png.image), 9).await?;
    assert_eq!(walked[0].id, done.image);
    assert_eq!(unmade(&walked[0].renditions), renditions());
    Ok(())
}

async fn a_step_makes_tasks_and_report_lines(store: Fixture) -> Result<()> {
    let (first, second) = (stored(&store).await?, stored(&store).await?);
    let id = begun(&store, spec()).await?;
    let step = BackfillStep {
        expected: Some(7),
        settled: vec![
            skipped(second.image.0),
            ReportLine {
                outcome: ItemOutcome::Failed,
                reason: Some("unreadable".to_owned()),
                ..skipped(Uuid::now_v7())
            },
        ],
        ..step(id, None, "here", first.image)
    };
    assert!(store.advance_backfill(&step).await?);

    let stands = backfill(&store, id).await?;
    assert_eq!((stands.cursor.as_deref(), stands.expected), (Some("here"), Some(7)));
    assert_eq!((stands.planned, stands.refused, stands.under_way()), (1, 1, 1));
    assert_eq!((stands.skipped["up_to_date"], stands.walked()), (1, 3));
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
    assert_eq!(store.backfill_report(id, None, 9).await?, step.settled);
    Ok(())
}

async fn a_step_uses_up_its_share_of_the_rate(store: Fixture) -> Result<()> {
    let image = stored(&store).await?.image;
    let id = begun(&store, spec()).await?;
    assert_eq!(backfill(&store, id).await?.rested_seconds, None);
    let step = BackfillStep { paced_seconds: 1000.0, ..step(id, None, "a", image) };
    assert!(store.advance_backfill(&step).await?);
    let rested = backfill(&store, id).await?.rested_seconds.context("it was fed")?;
    assert!((-1000.0..-900.0).contains(&rested), "{rested}");
    let led = store.lead_backfills(COORDINATOR(), HOUR, 9).await?;
    assert!(led[0].rested_seconds.is_some_and(|led| (rested..-900.0).contains(&led)), "{led:?}");
    Ok(())
}

async fn a_step_counts_only_where_the_walk_stands(store: Fixture) -> Result<()> {
    let image = stored(&store).await?.image;
    let id = begun(&store, spec()).await?;
    assert!(store.advance_backfill(&step(id, None, "a", image)).await?);
    let again = step(id, None, "a", image);
    assert!(!store.advance_backfill(&again).await?, "another coordinator was faster");
    assert!(store.task(again.work[0].task).await?.is_none());
    assert!(store.advance_backfill(&step(id, Some("a"), "b", image)).await?);
    let last = BackfillStep { is_last: true, ..step(id, Some("b"), "c", image) };
    assert!(store.advance_backfill(&last).await?);
    assert!(!store.advance_backfill(&step(id, Some("c"), "d", image)).await?, "it has walked");
    assert_eq!(backfill(&store, id).await?.planned, 3);
    Ok(())
}

async fn a_paused_walk_takes_no_step(store: Fixture) -> Result<()> {
    let image = stored(&store).await?.image;
    let id = begun(&store, spec()).await?;
    assert!(store.pause_backfill(id, true).await?);
    assert!(backfill(&store, id).await?.paused);
    assert!(!store.advance_backfill(&step(id, None, "a", image)).await?);
    assert!(store.pause_backfill(id, false).await?);
    assert!(store.advance_backfill(&step(id, None, "a", image)).await?);
    let upload = store.accepted().await?;
    assert!(!store.pause_backfill(upload.task, true).await?, "an upload cannot be paused");
    Ok(())
}

async fn what_has_nothing_left_to_hand_out_cannot_be_paused(store: Fixture) -> Result<()> {
    let image = stored(&store).await?.image;
    let id = begun(&store, spec()).await?;
    let work = handed_out(&store, id, &[image]).await?;
    assert!(!store.pause_backfill(id, true).await?);
    assert!(!backfill(&store, id).await?.paused);
    ended(&store, &work[0], &failed()).await?;
    store.collect_results(id, 9).await?;
    store.retry(&[id]).await?;
    assert!(store.pause_backfill(id, true).await?, "there is something to try again");
    assert!(store.pause_backfill(id, false).await?);
    Ok(())
}

async fn a_dry_run_only_counts(store: Fixture) -> Result<()> {
    let image = stored(&store).await?.image;
    let mut spec = spec();
    spec.dry_run = true;
    let id = begun(&store, spec).await?;
    let step = BackfillStep {
        settled: vec![skipped(Uuid::now_v7())],
        is_last: true,
        ..step(id, None, "a", image)
    };
    assert!(store.advance_backfill(&step).await?);
    assert!(store.task(step.work[0].task).await?.is_none());
    assert!(store.backfill_report(id, None, 9).await?.is_empty());
    store.collect_results(id, 9).await?;
    let stands = backfill(&store, id).await?;
    assert_eq!((stands.planned, stands.walked(), stands.under_way()), (1, 2, 0));
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Succeeded);
    Ok(())
}

/// What an import takes in, with a write and a thumbnail job.
fn taken_in(bytes: &[u8]) -> ChildTask {
    let import = ImportedImage {
        source: "/photos/a.jpg".to_owned(),
        sha256: ContentHash::of(bytes),
        bytes: 1,
        format: ImageFormat::Jpeg,
        labels: Labels {
            title: Some("A".to_owned()),
            tags: vec!["x".to_owned(), "y".to_owned()],
            filename: None,
        },
    };
    let jobs = vec![(JobId::new(), JobKind::Write), (JobId::new(), JobKind::Thumbnail)];
    let (task, kind, image) = (TaskId::new(), TaskKind::Upload, ImageId::new());
    ChildTask { task, kind, image, jobs, import: Some(import) }
}

async fn an_import_makes_images(store: Fixture) -> Result<()> {
    let mut import = BackfillSpec::new(BackfillKind::Import);
    import.visibility = Some(Visibility::Private);
    let id = begun(&store, import).await?;
    let child = taken_in(b"a");
    let image = child.image;
    let labels = child.import.as_ref().context("no import")?.labels.clone();
    let work = vec![child.clone()];
    let step = BackfillStep { work, max_attempts: 3, is_last: true, ..BackfillStep::of(id, None) };
    assert!(store.advance_backfill(&step).await?);
    let made = store.image(image).await?.context("no image")?;
    assert_eq!((made.labels, made.bytes), (labels, 1));
    assert_eq!(made.stored_at, None);
    assert_eq!((made.owner, made.visibility), ("ada".parse()?, Visibility::Private));
    for (index, outcome) in [written(), rendered()].iter().enumerate() {
        let (job, kind) = child.jobs[index];
        let notice = JobNotice { job, kind, lane: Lane::Bulk, generation: 0, trace: None };
        let job = store.claimed(&notice).await?;
        store.settled(&job, outcome).await?;
    }
    assert_eq!(store.collect_results(id, 9).await?, 1);
    let report = store.backfill_report(id, None, 9).await?;
    assert_eq!(report.len(), 1);
    assert_eq!((report[0].id, report[0].outcome), (image.0, ItemOutcome::Succeeded));
    assert_eq!(report[0].source.as_deref(), Some("/photos/a.jpg"));
    assert!(store.image(image).await?.context("no image")?.stored_at.is_some());
    Ok(())
}

async fn of_imports_of_the_same_at_once_one_takes_it_in(store: Fixture) -> Result<()> {
    let import = BackfillSpec::new(BackfillKind::Import);
    let (first, second) = (begun(&store, import.clone()).await?, begun(&store, import).await?);
    let step = |id: TaskId, work: &[&[u8]]| BackfillStep {
        work: work.iter().map(|bytes| taken_in(bytes)).collect(),
        max_attempts: 3,
        is_last: true,
        ..BackfillStep::of(id, None)
    };
    let steps = [step(first, &[b"a", b"b"]), step(second, &[b"b", b"c"])];
    let (one, other) =
        tokio::join!(store.advance_backfill(&steps[0]), store.advance_backfill(&steps[1]));
    assert!(one? && other?);
    let counts = [backfill(&store, first).await?, backfill(&store, second).await?];
    assert_eq!(counts[0].planned + counts[1].planned, 3, "{counts:#?}");
    let skipped = counts.iter().filter_map(|one| one.skipped.get("duplicate")).sum::<u64>();
    assert_eq!(skipped, 1);
    assert_eq!(store.images_with_blobs(&"ada".parse()?, &[ContentHash::of(b"b")]).await?.len(), 1);
    let mut lines = store.backfill_report(first, None, 9).await?;
    lines.extend(store.backfill_report(second, None, 9).await?);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0].source.as_deref(), Some("/photos/a.jpg"));

    // What failed for good may be taken in again.
    let work: Vec<_> = steps[0].work.iter().chain(&steps[1].work).collect();
    for child in work {
        if store.task(child.task).await?.is_some() {
            for (job, kind) in child.jobs.clone() {
                let notice = JobNotice { job, kind, lane: Lane::Bulk, generation: 0, trace: None };
                let job = store.claimed(&notice).await?;
                store.settled(&job, &failed()).await?;
            }
        }
    }
    let third = begun(&store, BackfillSpec::new(BackfillKind::Import)).await?;
    assert!(store.advance_backfill(&step(third, &[b"a"])).await?);
    assert_eq!(backfill(&store, third).await?.planned, 1);
    Ok(())
}

async fn no_race_of_imports_and_uploads_passes_a_quota(store: Fixture) -> Result<()> {
    let quota = Quota { images: Some(5), bytes: None };
    let mut import = BackfillSpec::new(BackfillKind::Import);
    import.quota = quota;
    let pictures = |name: &str| -> Vec<ChildTask> {
        (0..3).map(|at| taken_in(format!("{name}{at}").as_bytes())).collect()
    };
    let others = [store.another().await?, store.another().await?];
    let mut steps = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let task = begun(&store, import.clone()).await?;
        let work = pictures(name);
        steps.push(BackfillStep {
            work,
            max_attempts: 3,
            is_last: true,
            ..BackfillStep::of(task, None)
        });
    }
    let ada: Owner = "ada".parse()?;
    let new = || NewUpload { owner: ada.clone(), quota, ..super::fixture::upload() };
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
        assert!(counted?, "each step counts");
        let stands = backfill(&store, step.task).await?;
        assert_eq!(stands.planned + stands.refused, 3);
        imported += stands.planned;
        let lines = store.backfill_report(step.task, None, 9).await?;
        assert_eq!(lines.len() as u64, stands.refused, "{lines:?}");
        for line in lines {
            assert_eq!(
                (line.outcome, line.reason.as_deref(), line.source.as_deref()),
                (ItemOutcome::Failed, Some("over_quota"), Some("/photos/a.jpg"))
            );
        }
    }
    assert_eq!((imported + accepted, store.usage(&ada).await?.images), (5, 5));

    // Where there is room again, another import takes in what was refused, and nothing else.
    let work = ["a", "b", "c", "d"].iter().flat_map(|name| pictures(name)).collect();
    let again = begun(&store, BackfillSpec::new(BackfillKind::Import)).await?;
    let step =
        BackfillStep { work, max_attempts: 3, is_last: true, ..BackfillStep::of(again, None) };
    assert!(store.advance_backfill(&step).await?);
    let stands = backfill(&store, again).await?;
    assert_eq!((stands.planned, stands.skipped["duplicate"]), (12 - imported, imported));
    Ok(())
}

async fn equal_bytes_of_sound_images_come_first(store: Fixture) -> Result<()> {
    let bad = store.accepted().await?;
    for notice in [write_notice(&bad), thumbnail_notice(&bad)] {
        let job = store.claimed(&notice).await?;
        store.settled(&job, &failed()).await?;
    }
    let same = [bad.sha256];
    assert_eq!(store.images_with_blobs(&Owner::local(), &same).await?, [(bad.sha256, bad.image)]);
    let good = NewUpload { sha256: bad.sha256, ..super::fixture::upload() };
    store.accept_it(&good).await?;
    assert_eq!(
        store.images_with_blobs(&Owner::local(), &same).await?,
        [(bad.sha256, good.image)],
        "under way"
    );
    Ok(())
}

async fn equal_bytes_are_found(store: Fixture) -> Result<()> {
    let first = store.accepted().await?;
    let second = NewUpload { sha256: first.sha256, ..super::fixture::upload() };
    store.accept_it(&second).await?;
    let unknown = ContentHash::of(b"nobody has these");
    let found = store.images_with_blobs(&Owner::local(), &[unknown, first.sha256]).await?;
    assert_eq!(found, [(first.sha256, first.image)]);
    store.cancel(first.task).await?;
    let of_ada = store.images_with_blobs(&"ada".parse()?, &[first.sha256]).await?;
    assert_eq!(of_ada, [], "she has none");
    let found = store.images_with_blobs(&Owner::local(), &[first.sha256]).await?;
    assert_eq!(found, [(first.sha256, second.image)], "what was discarded counts no more");
    Ok(())
}

async fn what_is_under_way_or_failed_is_an_obstacle(store: Fixture) -> Result<()> {
    let (open, done) = (store.accepted().await?, stored(&store).await?);
    let bad = store.accepted().await?;
    for notice in [write_notice(&bad), thumbnail_notice(&bad)] {
        let job = store.claimed(&notice).await?;
        store.settled(&job, &failed()).await?;
    }
    let all = [open.image, done.image, bad.image];
    let mut found = store.blocking_jobs(&all).await?;
    found.sort_by_key(|obstacle| (obstacle.image, obstacle.kind.as_str()));
    let seen: Vec<_> = found.iter().map(|o| (o.image, o.kind, o.status)).collect();
    assert_eq!(
        seen,
        [
            (open.image, JobKind::Thumbnail, Status::Queued),
            (open.image, JobKind::Write, Status::Queued),
            (bad.image, JobKind::Thumbnail, Status::Failed),
            (bad.image, JobKind::Write, Status::Failed),
        ]
    );
    let failure = found[2].failure.as_ref().context("no failure")?;
    assert_eq!((failure.code, failure.message.as_str()), (ErrorCode::CorruptImage, "cut short"));
    Ok(())
}

async fn a_later_success_clears_a_failure(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    for (notice, outcome) in
        [(write_notice(&upload), written()), (thumbnail_notice(&upload), failed())]
    {
        let job = store.claimed(&notice).await?;
        store.settled(&job, &outcome).await?;
    }
    assert_eq!(store.blocking_jobs(&[upload.image]).await?.len(), 1);
    let id = begun(&store, spec()).await?;
    let work = handed_out(&store, id, &[upload.image]).await?;
    ended(&store, &work[0], &rendered()).await?;
    assert_eq!(store.blocking_jobs(&[upload.image]).await?, [], "the newest job succeeded");
    store.collect_results(id, 9).await?;
    assert!(store.task(work[0].task).await?.is_none());
    assert_eq!(store.blocking_jobs(&[upload.image]).await?, [], "also when that is forgotten");
    // And a failure after that counts again.
    let id = begun(&store, spec()).await?;
    let work = handed_out(&store, id, &[upload.image]).await?;
    ended(&store, &work[0], &failed()).await?;
    assert_eq!(store.blocking_jobs(&[upload.image]).await?.len(), 1);
    Ok(())
}

async fn a_tally_counts_forgets_and_ends(store: Fixture) -> Result<()> {
    let (first, second) = (stored(&store).await?, stored(&store).await?);
    let id = begun(&store, spec()).await?;
    let work = handed_out(&store, id, &[first.image, second.image]).await?;
    assert_eq!(store.collect_results(id, 9).await?, 0);
    assert_eq!(backfill(&store, id).await?.state, BackfillState::Walked);

    ended(&store, &work[0], &rendered()).await?;
    assert_eq!(store.collect_results(id, 9).await?, 1);
    assert!(store.task(work[0].task).await?.is_none(), "it is forgotten");
    let stands = backfill(&store, id).await?;
    assert_eq!((stands.succeeded, stands.under_way()), (1, 1));
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Running);

    ended(&store, &work[1], &rendered()).await?;
    assert_eq!(store.collect_results(id, 9).await?, 1);
    let task = store.task(id).await?.context("no task")?;
    assert_eq!((task.status, task.finished_at.is_some()), (Status::Succeeded, true));
    assert_eq!(backfill(&store, id).await?.state, BackfillState::Ended);
    assert!(store.lead_backfills(COORDINATOR(), HOUR, 9).await?.is_empty());
    assert_eq!(store.backfill_report(id, None, 9).await?.len(), 2);
    assert!(!store.pause_backfill(id, true).await?);
    assert!(!store.cancel(id).await?);
    Ok(())
}

async fn a_backfill_with_failures_fails_and_keeps_them(store: Fixture) -> Result<()> {
    let image = stored(&store).await?.image;
    let id = begun(&store, spec()).await?;
    let work = handed_out(&store, id, &[image]).await?;
    ended(&store, &work[0], &failed()).await?;
    assert_eq!(store.collect_results(id, 9).await?, 1);
    assert_eq!(store.collect_results(id, 9).await?, 0, "it is counted once");
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Failed);
    let kept = store.task(work[0].task).await?.context("it is kept")?;
    assert_eq!(kept.status, Status::Failed);
    let report = store.backfill_report(id, None, 9).await?;
    assert_eq!(report[0].reason.as_deref(), Some("corrupt_image"));
    assert_eq!(report[0].detail.as_deref(), Some("cut short"));
    Ok(())
}

async fn what_was_deleted_meanwhile_did_not_fail(store: Fixture) -> Result<()> {
    let image = stored(&store).await?.image;
    let id = begun(&store, spec()).await?;
    let work = handed_out(&store, id, &[image]).await?;
    ended(&store, &work[0], &failed()).await?;
    store.tamper("update images set discarded_at = created_at").await?;
    assert_eq!(store.collect_results(id, 9).await?, 1);
    let stands = backfill(&store, id).await?;
    assert_eq!((stands.failed, stands.cancelled_images), (0, 1));
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Succeeded);
    let report = store.backfill_report(id, None, 9).await?;
    assert_eq!(report[0].outcome, ItemOutcome::Cancelled);
    assert!(store.task(work[0].task).await?.is_none(), "nobody can do anything about it");
    Ok(())
}

async fn failed_images_are_handed_out_again(store: Fixture) -> Result<()> {
    let (first, second) = (stored(&store).await?, stored(&store).await?);
    let id = begun(&store, spec()).await?;
    let work = handed_out(&store, id, &[first.image, second.image]).await?;
    for child in &work {
        ended(&store, child, &failed()).await?;
    }
    store.collect_results(id, 9).await?;
    assert_eq!(store.retry(&[id]).await?, [id]);
    let stands = backfill(&store, id).await?;
    assert!(stands.retrying);
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Running);

    assert_eq!(store.retry_backfill(id, 1).await?, 1);
    assert_eq!(backfill(&store, id).await?.under_way(), 1);
    assert_eq!(store.retry_backfill(id, 9).await?, 1);
    // The first fails again: not for this retry any more.
    let job = store.claimed(&JobNotice { generation: 1, ..notice(&work[0]) }).await?;
    store.settled(&job, &failed()).await?;
    store.collect_results(id, 9).await?;
    assert_eq!(store.retry_backfill(id, 9).await?, 0);
    assert!(!backfill(&store, id).await?.retrying);
    let job = store.claimed(&JobNotice { generation: 1, ..notice(&work[1]) }).await?;
    store.settled(&job, &rendered()).await?;
    store.collect_results(id, 9).await?;
    let stands = backfill(&store, id).await?;
    assert_eq!((stands.succeeded, stands.failed, stands.under_way()), (1, 1, 0));
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Failed);
    let report = store.backfill_report(id, None, 9).await?;
    let outcomes: Vec<_> = report.iter().map(|item| item.outcome).collect();
    assert_eq!(outcomes, [ItemOutcome::Failed, ItemOutcome::Succeeded], "a line each");
    Ok(())
}

async fn one_failed_image_tried_again_reopens_its_backfill(store: Fixture) -> Result<()> {
    let image = stored(&store).await?.image;
    let id = begun(&store, spec()).await?;
    let work = handed_out(&store, id, &[image]).await?;
    ended(&store, &work[0], &failed()).await?;
    store.collect_results(id, 9).await?;
    assert_eq!(store.retry(&[work[0].task]).await?, [work[0].task]);
    let stands = backfill(&store, id).await?;
    assert_eq!((stands.state, stands.failed, stands.retrying), (BackfillState::Walked, 0, false));
    let job = store.claimed(&JobNotice { generation: 1, ..notice(&work[0]) }).await?;
    store.settled(&job, &rendered()).await?;
    store.collect_results(id, 9).await?;
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Succeeded);
    Ok(())
}

async fn a_cancelled_backfill_ends_with_what_it_handed_out(store: Fixture) -> Result<()> {
    let (first, second) = (stored(&store).await?, stored(&store).await?);
    let id = begun(&store, spec()).await?;
    let mut work = Vec::new();
    for (from, to, image) in [(None, "a", first.image), (Some("a"), "b", second.image)] {
        let step = step(id, from, to, image);
        assert!(store.advance_backfill(&step).await?);
        work.extend(step.work);
    }
    ended(&store, &work[0], &rendered()).await?;
    assert!(store.cancel(id).await?);
    assert!(!store.advance_backfill(&step(id, Some("b"), "c", first.image)).await?);
    store.refused(&notice(&work[1]), false).await?;
    assert_eq!(store.collect_results(id, 9).await?, 2);
    let task = store.task(id).await?.context("no task")?;
    assert_eq!(task.status, Status::Cancelled);
    let stands = backfill(&store, id).await?;
    assert_eq!((stands.succeeded, stands.cancelled_images), (1, 1));
    assert!(!store.image(second.image).await?.context("no image")?.discarded);
    Ok(())
}

async fn a_cancelled_import_discards_what_it_has_under_way(store: Fixture) -> Result<()> {
    let id = begun(&store, BackfillSpec::new(BackfillKind::Import)).await?;
    let work: Vec<ChildTask> = [&b"a"[..], b"b", b"c"].map(taken_in).into();
    let step = BackfillStep {
        work: work.clone(),
        max_attempts: 3,
        is_last: true,
        ..BackfillStep::of(id, None)
    };
    assert!(store.advance_backfill(&step).await?);
    for (index, outcome) in [written(), rendered()].iter().enumerate() {
        let (job, kind) = work[0].jobs[index];
        let notice = JobNotice { job, kind, lane: Lane::Bulk, generation: 0, trace: None };
        let job = store.claimed(&notice).await?;
        store.settled(&job, outcome).await?;
    }
    // Of the second one a rendition is being made beside.
    let beside = begun(&store, spec()).await?;
    let rendition = handed_out(&store, beside, &[work[1].image]).await?;
    assert!(store.cancel(id).await?);
    assert_eq!(store.collect_results(id, 9).await?, 3);
    let stands = backfill(&store, id).await?;
    assert_eq!((stands.succeeded, stands.cancelled_images), (1, 2));
    for (child, discarded) in work.iter().zip([false, true, true]) {
        let image = store.image(child.image).await?.context("no image")?;
        assert_eq!(image.discarded, discarded, "{image:?}");
    }
    let made = store.task(rendition[0].task).await?.context("no task")?;
    assert_eq!((made.status, made.progress.cancelled), (Status::Cancelled, 1));
    assert_eq!(store.publish_all().await?, [], "no notice is left");
    Ok(())
}

async fn a_claim_knows_what_its_backfill_wants(store: Fixture) -> Result<()> {
    let (upload, other) = (stored(&store).await?, store.accepted().await?);
    let mut spec = spec();
    spec.all = true;
    let id = begun(&store, spec.clone()).await?;
    let work = handed_out(&store, id, &[upload.image]).await?;
    assert_eq!(store.claimed_for(&notice(&work[0]), NOW).await?.backfill, Some(spec.clone()));
    assert_eq!(store.expired_leases(9).await?[0].backfill, Some(spec));
    assert_eq!(store.claimed(&write_notice(&other)).await?.backfill, None);
    Ok(())
}

async fn a_verified_image_keeps_what_was_repaired(store: Fixture) -> Result<()> {
    let upload = stored(&store).await?;
    let id = begun(&store, BackfillSpec::new(BackfillKind::Verify)).await?;
    let jobs = vec![(JobId::new(), JobKind::Verify)];
    let child = ChildTask { kind: TaskKind::Verify, jobs, ..child(upload.image) };
    let work = vec![child.clone()];
    let step = BackfillStep { work, max_attempts: 3, is_last: true, ..BackfillStep::of(id, None) };
    assert!(store.advance_backfill(&step).await?);
    let repaired = rendition("small", 777);
    let outcome = Outcome::Succeeded(vec![
        Effect::UpsertRenditions(vec![repaired.clone()]),
        Effect::ForgetRenditions(vec![rendition("medium", 40_000)]),
        Effect::Note("small was missing".to_owned()),
    ]);
    ended(&store, &child, &outcome).await?;
    let image = store.image(upload.image).await?.context("no image")?;
    assert_eq!(unmade(&image.renditions), [repaired]);
    assert!(image.placeholder.is_some(), "it stays as it was");
    store.collect_results(id, 9).await?;
    let report = store.backfill_report(id, None, 9).await?;
    assert_eq!(report[0].detail.as_deref(), Some("small was missing"));
    assert_eq!(report[0].outcome, ItemOutcome::Succeeded);
    Ok(())
}

async fn a_report_is_read_in_pages(store: Fixture) -> Result<()> {
    let id = begun(&store, spec()).await?;
    let items: Vec<ReportLine> = (0..5).map(|_| skipped(Uuid::now_v7())).collect();
    let step = BackfillStep { settled: items.clone(), ..BackfillStep::of(id, None) };
    assert!(store.advance_backfill(&step).await?);
    let (mut read, mut after) = (Vec::new(), None);
    loop {
        let page = store.backfill_report(id, after, 2).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        read.extend(page);
    }
    assert_eq!(read, items);
    Ok(())
}

async fn old_tasks_are_forgotten_and_failed_ones_kept(store: Fixture) -> Result<()> {
    let (done, open) = (stored(&store).await?, store.accepted().await?);
    let bad = store.accepted().await?;
    for notice in [write_notice(&bad), thumbnail_notice(&bad)] {
        let job = store.claimed(&notice).await?;
        store.settled(&job, &Outcome::Failed(failure())).await?;
    }
    assert_eq!(store.prune_tasks(HOUR, 9).await?, 0, "nothing is old");
    assert_eq!(store.prune_tasks(NOW, 9).await?, 1);
    assert_eq!(store.prune_tasks(NOW, 9).await?, 0);
    assert!(store.task(done.task).await?.is_none());
    assert!(store.task(open.task).await?.is_some());
    assert!(store.task(bad.task).await?.is_some());
    let image = store.image(done.image).await?.context("the image stays")?;
    assert_eq!(unmade(&image.renditions), renditions());
    Ok(())
}

async fn an_old_backfill_is_forgotten_with_its_report(store: Fixture) -> Result<()> {
    let id = begun(&store, spec()).await?;
    let items: Vec<ReportLine> = (0..5).map(|_| skipped(Uuid::now_v7())).collect();
    let step = BackfillStep { settled: items, is_last: true, ..BackfillStep::of(id, None) };
    assert!(store.advance_backfill(&step).await?);
    store.collect_results(id, 9).await?;
    let mut batches = 0;
    while store.prune_tasks(NOW, 2).await? > 0 {
        batches += 1;
    }
    assert_eq!(batches, 4, "three of lines, one of the task");
    assert!(store.task(id).await?.is_none());
    Ok(())
}

async fn an_old_failed_backfill_leaves_its_failed_tasks(store: Fixture) -> Result<()> {
    let image = stored(&store).await?.image;
    let id = begun(&store, spec()).await?;
    let work = handed_out(&store, id, &[image]).await?;
    ended(&store, &work[0], &failed()).await?;
    store.collect_results(id, 9).await?;
    assert_eq!(store.prune_tasks(HOUR, 9).await?, 0);
    while store.prune_tasks(NOW, 9).await? > 0 {}
    assert!(store.task(id).await?.is_none());
    assert!(store.backfill_report(id, None, 9).await?.is_empty());
    let kept = store.task(work[0].task).await?.context("it says why it failed")?;
    assert_eq!(kept.status, Status::Failed);
    assert_eq!(store.blocking_jobs(&[image]).await?.len(), 1);
    assert_eq!(store.retry(&[kept.id]).await?, [kept.id]);
    Ok(())
}
