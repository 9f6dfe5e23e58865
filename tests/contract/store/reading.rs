//! Reading tasks and images: pages, filters and versions.

use std::collections::HashSet;

use anyhow::{Context, Result};
use safelight_domain::{ImageId, JobKind, Status, TaskId, TaskKind};
use safelight_store::{NewUpload, Outcome, PageRequest, StoreError, TaskFilter, TaskVersion};

use super::{
    promises,
    test_store::{
        HOUR, NOW, TestStore, facts, failure, renditions, thumbnail_notice, thumbnail_succeeded,
        upload, without_made_at, write_notice, write_succeeded,
    },
};

promises!(
    accepted_upload_is_visible_to_every_process,
    task_pages_are_complete_and_newest_first,
    image_pages_are_complete_and_newest_first,
    tasks_are_listed_by_status_and_kind,
    listed_task_equals_single_task,
    versions_of_thousands_of_tasks_are_read_in_one_call,
    every_change_raises_the_version,
    last_task_of_a_new_image_is_its_upload,
    existing_images_omits_unknown_ids,
    unknown_status_in_a_row_is_corrupt,
);

async fn accepted_upload_is_visible_to_every_process(store: TestStore) -> Result<()> {
    let other = store.another_store().await?;
    for _ in 0..20 {
        let upload = store.accept_new_upload().await?;
        assert!(store.task(upload.task).await?.is_some());
        assert!(other.task(upload.task).await?.is_some());
    }
    Ok(())
}

async fn accept_many(store: &TestStore, count: usize) -> Result<Vec<NewUpload>> {
    let mut uploads = Vec::new();
    for _ in 0..count {
        uploads.push(store.accept_new_upload().await?);
    }
    uploads.reverse();
    Ok(uploads)
}

async fn task_pages_are_complete_and_newest_first(store: TestStore) -> Result<()> {
    let newest_first: Vec<_> = accept_many(&store, 12).await?.iter().map(|u| u.task).collect();
    // With 5 the last page has 2 rows, with 6 it is full, with 500 there is one page.
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

async fn image_pages_are_complete_and_newest_first(store: TestStore) -> Result<()> {
    let uploads = accept_many(&store, 12).await?;
    // The query returns several rows per image, which must not change the page size.
    for upload in &uploads[2..9] {
        let job = store.claim_job(&thumbnail_notice(upload)).await?;
        store.settle_job(&job, &thumbnail_succeeded()).await?;
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

async fn tasks_are_listed_by_status_and_kind(store: TestStore) -> Result<()> {
    let uploads = accept_many(&store, 6).await?;
    let job = store.claim_job(&write_notice(&uploads[1])).await?;
    for index in [3, 4] {
        for notice in [write_notice(&uploads[index]), thumbnail_notice(&uploads[index])] {
            let job = store.claim_job(&notice).await?;
            store.settle_job(&job, &Outcome::Failed(failure())).await?;
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

async fn listed_task_equals_single_task(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    store.accept_new_upload().await?;
    let job = store.claim_job(&thumbnail_notice(&upload)).await?;
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    let job = store.claim_job(&write_notice(&upload)).await?;
    store.settle_job(&job, &write_succeeded()).await?;

    let task = store.task_of(&upload).await?;
    let image = task.image.as_ref().context("no image")?;
    assert_eq!(image.facts, Some(facts()));
    assert_eq!(without_made_at(&image.renditions), renditions());
    let request = PageRequest { before: None, limit: 10 };
    let page = store.list_tasks(&TaskFilter::default(), &request).await?;
    assert_eq!(page.tasks[1], task);
    Ok(())
}

async fn versions_of_thousands_of_tasks_are_read_in_one_call(store: TestStore) -> Result<()> {
    let known: HashSet<_> =
        accept_many(&store, 20).await?.iter().map(|upload| upload.task).collect();
    let mut asked: Vec<_> = (0..40_000).map(|_| TaskId::new()).collect();
    asked.extend(&known);

    let versions = store.task_versions(&asked).await?;

    assert_eq!(versions.iter().map(|v| v.id).collect::<HashSet<_>>(), known);
    assert_eq!(versions.len(), known.len());
    assert!(versions.iter().all(|v| v.status == Status::Queued));
    assert_eq!(store.task_versions(&[]).await?, []);
    Ok(())
}

async fn every_change_raises_the_version(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let current = async || -> Result<i64> {
        let found = store.task_versions(&[upload.task]).await?;
        let task = store.task_of(&upload).await?;
        let expected = TaskVersion { id: task.id, version: task.version, status: task.status };
        assert_eq!(found, [expected]);
        Ok(task.version)
    };
    let mut versions = vec![current().await?];
    for outcome in [Outcome::Retry(failure(), NOW), Outcome::Released, write_succeeded()] {
        let job = store.claim_job(&write_notice(&upload)).await?;
        versions.push(current().await?);
        store.settle_job(&job, &outcome).await?;
        versions.push(current().await?);
    }
    let overtaken = store.claim_job_for(&thumbnail_notice(&upload), NOW).await?;
    versions.push(current().await?);
    store.claim_job(&thumbnail_notice(&upload)).await?;
    let last = current().await?;
    versions.push(last);
    assert!(versions.is_sorted_by(|earlier, later| earlier < later), "{versions:?}");

    // A call without effect does not raise the version.
    store.settle(&overtaken.lease, &thumbnail_succeeded()).await?;
    store.renew(&[overtaken.lease], HOUR).await?;
    store.assert_unclaimable(&thumbnail_notice(&upload), false).await?;
    assert_eq!(current().await?, last);
    Ok(())
}

async fn last_task_of_a_new_image_is_its_upload(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    store.accept_new_upload().await?;
    let task = store.last_task_of_image(upload.image, JobKind::Write).await?.context("no task")?;
    assert_eq!(task, store.task_of(&upload).await?);
    Ok(())
}

async fn existing_images_omits_unknown_ids(store: TestStore) -> Result<()> {
    let uploads = [store.accept_new_upload().await?, store.accept_new_upload().await?];
    let asked = [ImageId::new(), uploads[1].image, upload().image, uploads[0].image];
    let mut found = store.existing_images(&asked).await?;
    found.sort();
    assert_eq!(found, [uploads[0].image, uploads[1].image]);
    assert_eq!(store.existing_images(&[]).await?, []);
    Ok(())
}

async fn unknown_status_in_a_row_is_corrupt(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    store.tamper("update tasks set status = 'paused'").await?;
    let error = store.task(upload.task).await.expect_err("an unknown status");
    assert!(matches!(&error, StoreError::Corrupt(text) if text.contains("paused")), "{error}");
    Ok(())
}
