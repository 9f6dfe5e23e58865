//! Reading tasks and images: pages, filters, versions.

use std::collections::HashSet;

use anyhow::{Context, Result};
use safelight_domain::{ImageId, JobKind, Status, TaskId, TaskKind};
use safelight_store::{NewUpload, Outcome, PageRequest, StoreError, TaskFilter, TaskVersion};

use super::{
    fixture::{
        Fixture, HOUR, NOW, facts, failure, rendered, renditions, thumbnail_notice, unmade, upload,
        write_notice, written,
    },
    promises,
};

promises!(
    an_acknowledged_upload_is_seen_by_everyone,
    task_pages_are_complete_and_newest_first,
    image_pages_are_complete_and_newest_first,
    tasks_are_listed_by_status_and_kind,
    a_listed_task_has_all_that_a_single_one_has,
    versions_are_read_for_very_many_tasks_at_once,
    every_change_raises_the_version,
    the_task_of_an_image_is_its_upload,
    existing_images_are_told_from_others,
    a_row_of_another_release_is_corrupt,
);

async fn an_acknowledged_upload_is_seen_by_everyone(store: Fixture) -> Result<()> {
    let other = store.another().await?;
    for _ in 0..20 {
        let upload = store.accepted().await?;
        assert!(store.task(upload.task).await?.is_some());
        assert!(other.task(upload.task).await?.is_some());
    }
    Ok(())
}

async fn many(store: &Fixture, count: usize) -> Result<Vec<NewUpload>> {
    let mut uploads = Vec::new();
    for _ in 0..count {
        uploads.push(store.accepted().await?);
    }
    uploads.reverse();
    Ok(uploads)
}

async fn task_pages_are_complete_and_newest_first(store: Fixture) -> Result<()> {
    let newest_first: Vec<_> = many(&store, 12).await?.iter().map(|u| u.task).collect();
    // 5 leaves a last page of 2; 6 ends exactly; 500 is one page.
    for limit in [1, 5, 6, 12, 500] {
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let request = PageRequest { before, limit };
            let page = store.list_tasks(&TaskFilter::default(), &request).await?;
            assert!(page.tasks.len() <= limit as usize);
            seen.extend(page.tasks.iter().map(|task| task.id));
            before = page.next;
            if before.is_none() {
                break;
            }
            assert_eq!(page.tasks.len(), limit as usize);
        }
        assert_eq!(seen, newest_first, "limit {limit}");
    }
    Ok(())
}

async fn image_pages_are_complete_and_newest_first(store: Fixture) -> Result<()> {
    let uploads = many(&store, 12).await?;
    // Several rows per image in the query must not upset the pages.
    for upload in &uploads[2..9] {
        let job = store.claimed(&thumbnail_notice(upload)).await?;
        store.settled(&job, &rendered()).await?;
    }
    let newest_first: Vec<_> = uploads.iter().map(|upload| upload.image).collect();
    for limit in [1, 5, 6, 500] {
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let page = store.list_images(None, &PageRequest { before, limit }).await?;
            for image in &page.images {
                assert_eq!(store.image(image.id).await?.as_ref(), Some(image));
            }
            seen.extend(page.images.iter().map(|image| image.id));
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        assert_eq!(seen, newest_first, "limit {limit}");
    }
    Ok(())
}

async fn tasks_are_listed_by_status_and_kind(store: Fixture) -> Result<()> {
    let uploads = many(&store, 6).await?;
    let job = store.claimed(&write_notice(&uploads[1])).await?;
    for index in [3, 4] {
        for notice in [write_notice(&uploads[index]), thumbnail_notice(&uploads[index])] {
            let job = store.claimed(&notice).await?;
            store.settled(&job, &Outcome::Failed(failure())).await?;
        }
    }
    let list = async |status, kind, limit| -> Result<_> {
        let request = PageRequest { before: None, limit };
        let page = store
            .list_tasks(&TaskFilter { status, kind, ..TaskFilter::default() }, &request)
            .await?;
        Ok((page.tasks.iter().map(|task| task.id).collect::<Vec<_>>(), page.next))
    };

    assert_eq!(list(Some(Status::Running), None, 9).await?.0, [job.task]);
    let failed = [uploads[3].task, uploads[4].task];
    assert_eq!(list(Some(Status::Failed), Some(TaskKind::Upload), 9).await?.0, failed);
    assert_eq!(list(Some(Status::Failed), None, 1).await?, (failed[..1].to_vec(), Some(failed[0])));
    assert_eq!(list(None, Some(TaskKind::Upload), 9).await?.0.len(), 6);
    assert_eq!(list(None, Some(TaskKind::Backfill), 9).await?, (vec![], None));
    assert_eq!(list(Some(Status::Cancelled), None, 9).await?, (vec![], None));
    Ok(())
}

async fn a_listed_task_has_all_that_a_single_one_has(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    store.accepted().await?;
    let job = store.claimed(&thumbnail_notice(&upload)).await?;
    store.settled(&job, &rendered()).await?;
    let job = store.claimed(&write_notice(&upload)).await?;
    store.settled(&job, &written()).await?;

    let task = store.task_of(&upload).await?;
    let image = task.image.as_ref().context("no image")?;
    assert_eq!(image.facts, Some(facts()));
    assert_eq!(unmade(&image.renditions), renditions());
    let request = PageRequest { before: None, limit: 10 };
    let page = store.list_tasks(&TaskFilter::default(), &request).await?;
    assert_eq!(page.tasks[1], task);
    Ok(())
}

async fn versions_are_read_for_very_many_tasks_at_once(store: Fixture) -> Result<()> {
    let known: HashSet<_> = many(&store, 20).await?.iter().map(|upload| upload.task).collect();
    let mut asked: Vec<_> = (0..40_000).map(|_| TaskId::new()).collect();
    asked.extend(&known);

    let versions = store.task_versions(&asked).await?;

    assert_eq!(versions.iter().map(|v| v.id).collect::<HashSet<_>>(), known);
    assert_eq!(versions.len(), known.len());
    assert!(versions.iter().all(|v| v.status == Status::Queued));
    assert_eq!(store.task_versions(&[]).await?, []);
    Ok(())
}

async fn every_change_raises_the_version(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let current = async || -> Result<i64> {
        let found = store.task_versions(&[upload.task]).await?;
        let task = store.task_of(&upload).await?;
        let expected = TaskVersion { id: task.id, version: task.version, status: task.status };
        assert_eq!(found, [expected]);
        Ok(task.version)
    };
    let mut versions = vec![current().await?];
    for outcome in [Outcome::Retry(failure(), NOW), Outcome::Released, written()] {
        let job = store.claimed(&write_notice(&upload)).await?;
        versions.push(current().await?);
        store.settled(&job, &outcome).await?;
        versions.push(current().await?);
    }
    let overtaken = store.claimed_for(&thumbnail_notice(&upload), NOW).await?;
    versions.push(current().await?);
    store.claimed(&thumbnail_notice(&upload)).await?;
    let last = current().await?;
    versions.push(last);
    assert!(versions.is_sorted_by(|earlier, later| earlier < later), "{versions:?}");

    // What changes nothing raises nothing.
    store.settle(&overtaken.lease, &rendered()).await?;
    store.renew(&[overtaken.lease], HOUR).await?;
    store.refused(&thumbnail_notice(&upload), false).await?;
    assert_eq!(current().await?, last);
    Ok(())
}

async fn the_task_of_an_image_is_its_upload(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    store.accepted().await?;
    let task = store.last_task_of_image(upload.image, JobKind::Write).await?.context("no task")?;
    assert_eq!(task, store.task_of(&upload).await?);
    Ok(())
}

async fn existing_images_are_told_from_others(store: Fixture) -> Result<()> {
    let uploads = [store.accepted().await?, store.accepted().await?];
    let asked = [ImageId::new(), uploads[1].image, upload().image, uploads[0].image];
    let mut found = store.existing_images(&asked).await?;
    found.sort();
    assert_eq!(found, [uploads[0].image, uploads[1].image]);
    assert_eq!(store.existing_images(&[]).await?, []);
    Ok(())
}

async fn a_row_of_another_release_is_corrupt(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    store.tamper("update tasks set status = 'paused'").await?;
    let error = store.task(upload.task).await.expect_err("an unknown status");
    assert!(matches!(&error, StoreError::Corrupt(text) if text.contains("paused")), "{error}");
    Ok(())
}
