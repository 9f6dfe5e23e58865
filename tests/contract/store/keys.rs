//! Idempotency keys.

use anyhow::{Result, bail};
use futures::future::join_all;
use safelight_domain::ContentHash;
use safelight_store::{Accepted, IdempotencyKey, KeyState, KeyTicket, NewUpload};

use super::{
    promises,
    test_store::{HOUR, NOW, TestStore, upload},
};

promises!(
    key_moves_from_free_to_in_flight_to_used,
    released_key_is_free_again,
    concurrent_requests_reserve_a_key_once,
    expired_reservation_can_be_taken,
    upload_that_lost_its_key_has_no_effect,
    expired_reservation_is_valid_until_taken,
    accepting_again_with_a_key_changes_nothing,
    old_keys_expire_and_reserved_keys_stay,
);

fn key(owner: &str, key: &str) -> IdempotencyKey {
    IdempotencyKey { owner: owner.parse().expect("an owner"), key: key.to_owned() }
}

fn ticket(state: KeyState) -> Result<KeyTicket> {
    match state {
        KeyState::Reserved(ticket) => Ok(ticket),
        other => bail!("not reserved: {other:?}"),
    }
}

fn upload_with(ticket: &KeyTicket) -> NewUpload {
    let upload = upload();
    NewUpload { key: Some((ticket.clone(), upload.sha256)), ..upload }
}

fn used_by(upload: &NewUpload) -> KeyState {
    KeyState::Used { task: upload.task, fingerprint: upload.sha256 }
}

async fn key_moves_from_free_to_in_flight_to_used(store: TestStore) -> Result<()> {
    let key_a = key("ann", "k");
    let reserved = ticket(store.reserve_key(&key_a, HOUR).await?)?;
    assert_eq!(reserved.key, key_a);
    assert_eq!(store.reserve_key(&key_a, HOUR).await?, KeyState::InFlight);
    // The same key of another owner is a different key.
    ticket(store.reserve_key(&key("bob", "k"), HOUR).await?)?;

    let upload = upload_with(&reserved);
    store.accept_upload(&upload).await?;
    assert_eq!(store.reserve_key(&key_a, NOW).await?, used_by(&upload));
    // A used key is freed neither by a late release nor by the end of the hold.
    store.release_key(&reserved).await?;
    assert_eq!(store.reserve_key(&key_a, NOW).await?, used_by(&upload));
    Ok(())
}

async fn released_key_is_free_again(store: TestStore) -> Result<()> {
    let first = ticket(store.reserve_key(&key("local", "k"), HOUR).await?)?;
    store.release_key(&first).await?;
    let second = ticket(store.reserve_key(&key("local", "k"), HOUR).await?)?;
    assert_ne!(first.token, second.token);
    // The first ticket no longer releases anything.
    store.release_key(&first).await?;
    assert_eq!(store.reserve_key(&key("local", "k"), HOUR).await?, KeyState::InFlight);
    Ok(())
}

async fn concurrent_requests_reserve_a_key_once(store: TestStore) -> Result<()> {
    let key = key("local", "k");
    let states = join_all((0..32).map(|_| store.reserve_key(&key, HOUR))).await;
    let mut reserved = 0;
    for state in states {
        match state? {
            KeyState::Reserved(_) => reserved += 1,
            state => assert_eq!(state, KeyState::InFlight),
        }
    }
    assert_eq!(reserved, 1);
    Ok(())
}

async fn expired_reservation_can_be_taken(store: TestStore) -> Result<()> {
    let first = ticket(store.reserve_key(&key("local", "k"), NOW).await?)?;
    let second = ticket(store.reserve_key(&key("local", "k"), HOUR).await?)?;
    assert_ne!(first.token, second.token);
    store.release_key(&first).await?;
    store.accept_upload(&upload_with(&second)).await
}

async fn upload_that_lost_its_key_has_no_effect(store: TestStore) -> Result<()> {
    let first = ticket(store.reserve_key(&key("local", "k"), NOW).await?)?;
    let second = ticket(store.reserve_key(&key("local", "k"), HOUR).await?)?;

    let lost = upload_with(&first);
    assert_eq!(store.accept(&lost).await?, Accepted::KeyLost);

    assert_eq!(store.task(lost.task).await?, None);
    assert_eq!(store.image(lost.image).await?, None);
    assert_eq!(store.count_unpublished().await?, 0);
    let winner = upload_with(&second);
    store.accept_upload(&winner).await?;
    assert_eq!(store.reserve_key(&key("local", "k"), HOUR).await?, used_by(&winner));
    assert_eq!(store.accept(&lost).await?, Accepted::KeyLost);
    Ok(())
}

async fn expired_reservation_is_valid_until_taken(store: TestStore) -> Result<()> {
    let slow = ticket(store.reserve_key(&key("local", "k"), NOW).await?)?;
    store.accept_upload(&upload_with(&slow)).await
}

async fn accepting_again_with_a_key_changes_nothing(store: TestStore) -> Result<()> {
    let upload = upload_with(&ticket(store.reserve_key(&key("local", "k"), HOUR).await?)?);
    store.accept_upload(&upload).await?;
    let before = store.task_of(&upload).await?;
    store.accept_upload(&upload).await?;
    assert_eq!(store.task_of(&upload).await?, before);
    Ok(())
}

async fn old_keys_expire_and_reserved_keys_stay(store: TestStore) -> Result<()> {
    let held = key("local", "held");
    ticket(store.reserve_key(&held, HOUR).await?)?;
    for name in ["a", "b", "c"] {
        let reserved = ticket(store.reserve_key(&key("local", name), HOUR).await?)?;
        store.accept_upload(&upload_with(&reserved)).await?;
    }
    ticket(store.reserve_key(&key("local", "abandoned"), NOW).await?)?;

    assert_eq!(store.expire_keys(HOUR, 10).await?, 0);
    assert_eq!(store.expire_keys(NOW, 2).await?, 2);
    assert_eq!(store.expire_keys(NOW, 10).await?, 2);
    assert_eq!(store.expire_keys(NOW, 10).await?, 0);

    assert_eq!(store.reserve_key(&held, HOUR).await?, KeyState::InFlight);
    let again = ticket(store.reserve_key(&key("local", "a"), HOUR).await?)?;
    let mut other = upload_with(&again);
    other.key = Some((again, ContentHash::of(b"another payload")));
    store.accept_upload(&other).await
}
