//! Keys, quotas, ownership and the audit log.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::join_all;
use safelight_domain::{
    ApiKey, Owner, Quota, Scope, Usage, Visibility, new_id,
    secrets::{self, ApiSecret},
};
use safelight_store::{
    Accepted, AuditEntry, NewApiKey, NewSigningKey, NewUpload, PageRequest, Settled, TaskFilter,
};
use uuid::Uuid;

use super::{
    promises,
    test_store::{
        HOUR, NOW, TestStore, later_id, thumbnail_notice, thumbnail_succeeded, upload,
        write_notice, write_succeeded,
    },
};

promises!(
    key_is_found_by_prefix_and_live_until_revoked,
    key_expires_by_the_database_clock,
    keys_are_listed_by_owner_in_pages,
    revoked_keys_still_count_as_existing,
    owner_has_at_most_two_signing_keys,
    uploads_belong_to_their_owner,
    usage_counts_accepted_images_until_cancelled,
    concurrent_uploads_never_exceed_a_quota,
    accepting_again_does_not_count_against_the_quota,
    audit_log_is_listed_newest_first,
    renditions_of_equal_bytes_stay_hidden_from_other_owners,
    both_jobs_of_an_image_settle_concurrently,
);

fn ada() -> Owner {
    "ada".parse().expect("an owner")
}

fn new_key(owner: &Owner, lifetime: Option<Duration>) -> (ApiSecret, NewApiKey) {
    let secret = ApiSecret::new().expect("random bytes");
    let new = NewApiKey {
        id: later_id(),
        prefix: secret.prefix().to_owned(),
        owner: owner.clone(),
        scopes: "upload,read".parse().expect("scopes"),
        secret_sha256: secret.hash(),
        lifetime,
    };
    (secret, new)
}

async fn key_is_found_by_prefix_and_live_until_revoked(store: TestStore) -> Result<()> {
    let (secret, new) = new_key(&ada(), None);
    store.create_api_key(&new).await?;
    store.create_api_key(&new).await?;
    let known = store.api_key(secret.prefix()).await?.context("no key")?;
    assert!(known.is_live && secret.is(&known.secret_sha256));
    assert_eq!((known.key.id, &known.key.owner), (new.id, &ada()));
    assert!(known.key.scopes.allow(Scope::Upload) && !known.key.scopes.allow(Scope::Admin));
    assert_eq!((known.key.expires_at, known.key.last_used_at), (None, None));
    store.note_key_use(new.id).await?;

    let revoked = store.revoke_api_key(new.id).await?.context("no key")?;
    assert!(revoked.last_used_at.is_some());
    let again = store.revoke_api_key(new.id).await?.context("no key")?;
    assert_eq!(again.revoked_at, revoked.revoked_at);
    assert!(!store.api_key(secret.prefix()).await?.context("no key")?.is_live);
    assert_eq!(store.revoke_api_key(new_id()).await?, None);
    assert_eq!(store.api_key("sl_unknown").await?, None);
    let (other, new) = new_key(&ada(), None);
    store.create_api_key(&new).await?;
    let prefixes = [secret.prefix(), "sl_unknown", other.prefix()].map(str::to_owned);
    let mut found: Vec<_> =
        store.api_keys(&prefixes).await?.into_iter().map(|known| known.key.prefix).collect();
    found.sort_unstable();
    let mut expected = [&prefixes[0], &prefixes[2]];
    expected.sort_unstable();
    assert_eq!(found.iter().collect::<Vec<_>>(), expected);
    Ok(())
}

async fn key_expires_by_the_database_clock(store: TestStore) -> Result<()> {
    let (over, new) = new_key(&ada(), Some(NOW));
    store.create_api_key(&new).await?;
    assert!(!store.api_key(over.prefix()).await?.context("no key")?.is_live);
    let (good, new) = new_key(&ada(), Some(HOUR));
    store.create_api_key(&new).await?;
    assert!(store.api_key(good.prefix()).await?.context("no key")?.is_live);
    let (long, new) = new_key(&ada(), Some(*ApiKey::LIFETIME.end()));
    store.create_api_key(&new).await?;
    let key = store.api_key(long.prefix()).await?.context("no key")?.key;
    let lifetime = key.expires_at.context("no end")? - key.created_at;
    assert_eq!(lifetime.to_std()?, *ApiKey::LIFETIME.end(), "not cut");
    Ok(())
}

async fn keys_are_listed_by_owner_in_pages(store: TestStore) -> Result<()> {
    let mut ids = Vec::new();
    for owner in [ada(), Owner::local(), ada(), ada()] {
        let (_, new) = new_key(&owner, None);
        store.create_api_key(&new).await?;
        ids.push(new.id);
    }
    ids.reverse();
    let list = async |owner: Option<&Owner>, before| -> Result<Vec<Uuid>> {
        let keys = store.list_api_keys(owner, &PageRequest { before, limit: 2 }).await?;
        Ok(keys.iter().map(|key| key.id).collect())
    };
    assert_eq!(list(None, None).await?, ids[..2]);
    assert_eq!(list(None, Some(ids[1])).await?, ids[2..]);
    assert_eq!(list(Some(&ada()), Some(ids[0])).await?, [ids[1], ids[3]]);
    Ok(())
}

async fn revoked_keys_still_count_as_existing(store: TestStore) -> Result<()> {
    assert!(!store.has_api_keys().await?);
    let (_, new) = new_key(&ada(), Some(NOW));
    store.create_api_key(&new).await?;
    store.revoke_api_key(new.id).await?;
    assert!(store.has_api_keys().await?);
    Ok(())
}

async fn owner_has_at_most_two_signing_keys(store: TestStore) -> Result<()> {
    let new = |owner: Owner| {
        let (id, secret) = secrets::new_signing_key().expect("random bytes");
        NewSigningKey { id, owner, secret }
    };
    let keys: Vec<_> = (0..6).map(|_| new(ada())).collect();
    let made = join_all(keys.iter().map(|key| store.create_signing_key(key, 2))).await;
    let made = made.into_iter().collect::<Result<Vec<_>, _>>()?;
    assert_eq!(made.iter().filter(|made| **made).count(), 2, "also under concurrent requests");
    assert!(store.create_signing_key(&new(Owner::local()), 2).await?, "the limit is per owner");

    let (first, _) = keys.iter().zip(&made).find(|(_, made)| **made).context("none")?;
    assert!(store.create_signing_key(first, 2).await?, "creating it again changes nothing");
    let live = store.signing_key(&first.id).await?.context("no key")?;
    assert_eq!((live.key.owner, &live.secret), (ada(), &first.secret));
    assert!(store.newest_signing_key(&ada()).await?.is_some());
    store.revoke_signing_key(&first.id).await?.context("no key")?;
    assert_eq!(store.signing_key(&first.id).await?, None);
    assert!(store.create_signing_key(&new(ada()), 2).await?, "a revoked key frees its place");
    assert_eq!(store.list_signing_keys(Some(&ada())).await?.len(), 3);
    assert_eq!(store.list_signing_keys(None).await?.len(), 4);
    Ok(())
}

fn upload_of_ada() -> NewUpload {
    let mut upload = NewUpload { owner: ada(), ..upload() };
    upload.labels.visibility = Some(Visibility::Private);
    upload
}

async fn uploads_belong_to_their_owner(store: TestStore) -> Result<()> {
    let hers = upload_of_ada();
    store.accept_upload(&hers).await?;
    let other = store.accept_new_upload().await?;
    let task = store.task_of(&hers).await?;
    let image = task.image.context("no image")?;
    assert_eq!(image.visibility(), Visibility::Private);
    assert_eq!((task.owner, image.owner), (ada(), ada()));

    let page = PageRequest { before: None, limit: 9 };
    let ids = |images: Vec<safelight_domain::Image>| {
        images.into_iter().map(|image| image.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(store.list_images(Some(&ada()), &page).await?.images), [hers.image]);
    assert_eq!(ids(store.list_images(None, &page).await?.images), [other.image, hers.image]);
    let filter = TaskFilter { owner: Some(ada()), ..TaskFilter::default() };
    let page = PageRequest { before: None, limit: 9 };
    let tasks = store.list_tasks(&filter, &page).await?.tasks;
    assert_eq!(tasks.iter().map(|task| task.id).collect::<Vec<_>>(), [hers.task]);
    Ok(())
}

async fn usage_counts_accepted_images_until_cancelled(store: TestStore) -> Result<()> {
    assert_eq!(store.usage(&ada()).await?, Usage::default());
    let first = upload_of_ada();
    // Equal bytes count again, so that usage does not reveal what others store.
    let second = NewUpload { sha256: first.sha256, ..upload_of_ada() };
    for upload in [&first, &second, &first] {
        store.accept_upload(upload).await?;
    }
    store.accept_new_upload().await?;
    let used = Usage { images: 2, bytes: first.bytes + second.bytes };
    assert_eq!(store.usage(&ada()).await?, used);
    assert!(store.cancel(first.task).await?);
    assert!(!store.cancel(first.task).await?);
    assert_eq!(store.usage(&ada()).await?, Usage { images: 1, bytes: second.bytes });
    Ok(())
}

async fn concurrent_uploads_never_exceed_a_quota(store: TestStore) -> Result<()> {
    let quota = Quota { images: Some(5), bytes: None };
    let uploads: Vec<_> = (0..20).map(|_| NewUpload { quota, ..upload_of_ada() }).collect();
    let others = [store.another_store().await?, store.another_store().await?];
    let accepted = join_all(
        uploads.iter().enumerate().map(|(at, upload)| others[at % others.len()].accept(upload)),
    );
    let (mut yes, mut over) = (0, 0);
    for accepted in accepted.await {
        match accepted? {
            Accepted::Yes(_) => yes += 1,
            Accepted::OverQuota(used) => {
                assert_eq!(used.images, 5);
                over += 1;
            }
            Accepted::KeyLost => unreachable!("there was no key"),
        }
    }
    assert_eq!((yes, over), (5, 15));
    assert_eq!(store.usage(&ada()).await?.images, 5);
    let bytes = store.usage(&ada()).await?.bytes;
    let exact = Quota { images: None, bytes: Some(bytes + uploads[0].bytes) };
    let fits = NewUpload { quota: exact, ..upload_of_ada() };
    assert!(matches!(store.accept(&fits).await?, Accepted::Yes(_)));
    let too_much = NewUpload { quota: exact, ..upload_of_ada() };
    assert!(matches!(store.accept(&too_much).await?, Accepted::OverQuota(_)));
    Ok(())
}

async fn accepting_again_does_not_count_against_the_quota(store: TestStore) -> Result<()> {
    let upload = NewUpload { quota: Quota { images: Some(1), bytes: None }, ..upload_of_ada() };
    let first = store.accept(&upload).await?;
    assert!(matches!(first, Accepted::Yes(_)));
    assert_eq!(store.accept(&upload).await?, first);
    Ok(())
}

async fn audit_log_is_listed_newest_first(store: TestStore) -> Result<()> {
    let entry = |action: &str| AuditEntry {
        id: later_id(),
        at: chrono::Utc::now(),
        key: Some("sl_abc".to_owned()),
        owner: ada(),
        action: action.to_owned(),
        target: "/v1/keys".to_owned(),
    };
    let entries = [entry("POST"), entry("DELETE")];
    for entry in [&entries[0], &entries[1], &entries[1]] {
        store.audit(entry).await?;
    }
    let listed = store.list_audit(&PageRequest { before: None, limit: 9 }).await?;
    let actions: Vec<_> = listed.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["DELETE", "POST"]);
    assert_eq!((&listed[0].key, &listed[0].owner), (&entries[1].key, &ada()));
    let rest = store.list_audit(&PageRequest { before: Some(listed[0].id), limit: 9 }).await?;
    assert_eq!(rest.len(), 1);
    Ok(())
}

async fn renditions_of_equal_bytes_stay_hidden_from_other_owners(store: TestStore) -> Result<()> {
    let hers = upload_of_ada();
    store.accept_upload(&hers).await?;
    let job = store.claim_job(&thumbnail_notice(&hers)).await?;
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    let shown = async |upload: &NewUpload| -> Result<(bool, bool)> {
        let image = store.image(upload.image).await?.context("no image")?;
        Ok((!image.renditions.is_empty(), image.placeholder.is_some()))
    };
    assert_eq!(shown(&hers).await?, (true, true));

    // Another owner: the renditions are hidden, and the worker has to make all of them.
    let his = NewUpload { sha256: hers.sha256, owner: "bob".parse()?, ..upload_of_ada() };
    store.accept_upload(&his).await?;
    assert_eq!(shown(&his).await?, (false, false));
    let job = store.claim_job(&thumbnail_notice(&his)).await?;
    assert_eq!(job.image.renditions, []);
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    assert_eq!(shown(&his).await?, (true, true));

    // The same owner: nothing is hidden.
    let again = NewUpload { sha256: hers.sha256, ..upload_of_ada() };
    store.accept_upload(&again).await?;
    assert_eq!(shown(&again).await?, (true, true));
    Ok(())
}

/// A statement that settles both jobs changes the image's row only once.
async fn both_jobs_of_an_image_settle_concurrently(store: TestStore) -> Result<()> {
    let uploads: Vec<_> = (0..8).map(|_| upload_of_ada()).collect();
    let mut jobs = Vec::new();
    for upload in &uploads {
        store.accept_upload(upload).await?;
        jobs.push((store.claim_job(&write_notice(upload)).await?, write_succeeded()));
        jobs.push((store.claim_job(&thumbnail_notice(upload)).await?, thumbnail_succeeded()));
    }
    let ends = jobs.iter().map(|(job, outcome)| store.settle(&job.lease, outcome));
    for settled in join_all(ends).await {
        assert_eq!(settled?, Settled::Applied);
    }
    for upload in &uploads {
        let image = store.image(upload.image).await?.context("no image")?;
        assert!(image.stored_at.is_some() && image.facts.is_some());
        assert!(!image.renditions.is_empty());
    }
    Ok(())
}
