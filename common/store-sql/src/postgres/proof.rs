//! Proof that a transaction can be committed, and what a failure says about the server.

use safelight_store::StoreError;
use sqlx::{PgConnection, error::DatabaseError};

/// Moves the database's clock on, which never goes back. If another process did so in the last half second,
/// its commit is the proof: on this server, as this statement fails on one that cannot write, even if there is
/// nothing to change. So a fleet commits twice a second at most, however many nodes ask.
///
/// While a commit hangs, for example because no synchronous standby answers, the first of these statements
/// hangs with it and holds the row; all others fail after `lock_timeout`, so they do not pile up on the server.
const PROOF: &str = "set local lock_timeout = '1500ms';
    update database_clock set seen_at = greatest(seen_at, now())
    where seen_at not between now() - interval '500 milliseconds' and now()";

/// `undefined_table`.
const NO_TABLE: &str = "42P01";

/// Succeeds if a transaction can be committed on this connection now, or if there is no schema yet.
pub async fn prove_commit(conn: &mut PgConnection) -> Result<(), StoreError> {
    // Several statements in one message are one transaction.
    match sqlx::raw_sql(PROOF).execute(conn).await {
        Ok(_) => Ok(()),
        Err(error) => {
            let error = StoreError::from(error);
            if sqlstate(&error).as_deref() == Some(NO_TABLE) { Ok(()) } else { Err(error) }
        }
    }
}

/// Whether a transaction failed because of what others did at the same time, as in a deadlock, or because it had
/// to wait for them too long.
pub fn is_about_others(error: &StoreError) -> bool {
    sqlstate(error).is_some_and(|code| {
        code.starts_with("40") || code == LOCK_NOT_AVAILABLE || code == QUERY_CANCELED
    })
}

/// Whether another server may do what failed.
pub fn is_about_server(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(_)) && !is_about_others(error)
}

const LOCK_NOT_AVAILABLE: &str = "55P03";
const QUERY_CANCELED: &str = "57014";

/// The code that the database gave an error.
fn sqlstate(error: &StoreError) -> Option<String> {
    let (StoreError::Unavailable(cause) | StoreError::Database(cause)) = error else { return None };
    let error = cause.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    error.and_then(DatabaseError::code).map(String::from)
}
