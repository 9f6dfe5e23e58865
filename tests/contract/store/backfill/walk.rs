//! Which images a backfill walks over.

use anyhow::{Context, Result};
use safelight_domain::{ImageFormat, ImageId, Owner, TaskId};
use safelight_store::{ImageFilter, NewBackfill, NewUpload};

use super::{finished_upload, load_backfill, spec, start_backfill};
use crate::contract::store::{
    promises,
    test_store::{self, TestStore, renditions, without_made_at},
};

promises!(
    walk_visits_each_earlier_image_once,
    walk_visits_images_newer_than_its_task_id,
    walk_filters_by_format_and_date,
);

/// All images that were accepted before the backfill.
async fn images_before(store: &TestStore, until: TaskId) -> Result<ImageFilter> {
    let until = load_backfill(store, until).await?.started_at;
    Ok(ImageFilter { until, created_after: None, format: None })
}

async fn walk_visits_each_earlier_image_once(store: TestStore) -> Result<()> {
    let mut images = Vec::new();
    for _ in 0..5 {
        images.push(store.accept_new_upload().await?.image);
    }
    let id = start_backfill(&store, spec()).await?;
    let later = store.accept_new_upload().await?;
    let filter = images_before(&store, id).await?;
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

async fn walk_visits_images_newer_than_its_task_id(store: TestStore) -> Result<()> {
    let early = TaskId::new();
    let image = store.accept_new_upload().await?.image;
    let new = NewBackfill { task: early, owner: Owner::local(), spec: spec() };
    assert!(store.create_backfill(&new).await?);
    store.accept_new_upload().await?;
    let filter = images_before(&store, early).await?;
    let seen = store.walk_images(&filter, None, 9).await?;
    assert_eq!(seen.iter().map(|image| image.id).collect::<Vec<_>>(), [image]);
    assert_eq!(store.count_images(&filter).await?, 1);
    Ok(())
}

async fn walk_filters_by_format_and_date(store: TestStore) -> Result<()> {
    let jpeg = store.accept_new_upload().await?;
    let png = NewUpload { format: ImageFormat::Png, ..test_store::upload() };
    store.accept_upload(&png).await?;
    let gone = store.accept_new_upload().await?;
    store.cancel(gone.task).await?;
    let made = store.image(png.image).await?.context("no image")?.created_at;
    let all = images_before(&store, start_backfill(&store, spec()).await?).await?;
    let seen = async |filter: &ImageFilter| -> Result<Vec<ImageId>> {
        let page = store.walk_images(filter, None, 9).await?;
        assert_eq!(store.count_images(filter).await?, page.len() as u64);
        Ok(page.iter().map(|image| image.id).collect())
    };
    assert_eq!(seen(&all).await?, [jpeg.image, png.image], "discarded images are left out");
    let pngs = ImageFilter { format: Some(ImageFormat::Png), ..all.clone() };
    assert_eq!(seen(&pngs).await?, [png.image]);
    let recent = ImageFilter { created_after: Some(made), ..all.clone() };
    assert_eq!(seen(&recent).await?, [png.image]);
    let walked = store.walk_images(&all, None, 1).await?;
    assert!(walked[0].renditions.is_empty());
    let done = finished_upload(&store).await?;
    let all = images_before(&store, start_backfill(&store, spec()).await?).await?;
    let walked = store.walk_images(&all, Some(png.image), 9).await?;
    assert_eq!(walked[0].id, done.image);
    assert_eq!(without_made_at(&walked[0].renditions), renditions());
    Ok(())
}
