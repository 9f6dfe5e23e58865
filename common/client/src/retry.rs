use safelight_domain::retry::Reconnect;

use crate::error::ClientError;

/// Counts the tries of one call, and waits between them.
pub(crate) struct Retries {
    left: u32,
    delays: Reconnect,
}

impl Retries {
    /// Of a call that is made at most `tries` times.
    pub fn new(tries: u32) -> Self {
        Self { left: tries, delays: Reconnect::default() }
    }

    /// Returns after a delay if the call is to be made again; otherwise returns the error.
    pub async fn after(&mut self, error: ClientError) -> Result<(), ClientError> {
        self.left = self.left.saturating_sub(1);
        if !error.is_retryable() || self.left == 0 {
            return Err(error);
        }
        let backoff = self.delays.next_delay();
        let delay = error.retry_after().map_or(backoff, |wait| wait + backoff / 4);
        tokio::time::sleep(delay).await;
        Ok(())
    }
}
