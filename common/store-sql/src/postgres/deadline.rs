//! A limit on every call: a database that hangs without closing its connections would otherwise hold its
//! callers forever.

use std::{io, sync::Arc, time::Duration};

use safelight_store::StoreError;

/// How long a call may take in all.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Runs a call within [`CALL_TIMEOUT`]. The pool closes a connection whose call was cut short, if it does not
/// recover.
pub async fn with_deadline<T>(
    call: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| {
        let text = format!("no answer within {} s", CALL_TIMEOUT.as_secs());
        Err(StoreError::Unavailable(Arc::new(io::Error::new(io::ErrorKind::TimedOut, text))))
    })
}
