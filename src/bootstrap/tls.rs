//! The TLS certificate, and its reload when the files change.

use std::time::Duration;

use safelight_api::{Tls, TlsError};
use safelight_config::Config;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::background::supervise;
use crate::error::CommandError;

/// How often the files are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// The configured certificate, if there is one.
pub fn load(config: &Config) -> Result<Option<Tls>, CommandError> {
    let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) else {
        return Ok(None);
    };
    Tls::load(certificate, key).map(Some).map_err(|error| {
        CommandError::failed(&error).hint(match error {
            TlsError::Unreadable { .. } => {
                "are tls_certificate and tls_key right, and may this user read the files?"
            }
            _ => {
                "tls_certificate is the chain, the server's own certificate first, and tls_key its \
                 private key without a password"
            }
        })
    })
}

/// Reloads the certificate on SIGHUP, and when a regular check finds other files.
pub fn reload_on_change(tls: &Tls, shutdown: &CancellationToken) -> Result<(), CommandError> {
    // Before the process reports that it listens: from here on SIGHUP no longer ends it.
    drop(signal(SignalKind::hangup()).map_err(CommandError::failed)?);
    let tls = tls.clone();
    supervise("certificate", shutdown, move |token| watch_files(tls.clone(), token));
    Ok(())
}

async fn watch_files(tls: Tls, shutdown: CancellationToken) {
    let mut hangups = signal(SignalKind::hangup()).ok();
    while shutdown.run_until_cancelled(next_check(hangups.as_mut())).await.is_some() {
        let tls = tls.clone();
        match tokio::task::spawn_blocking(move || tls.reload()).await {
            Ok(Ok(true)) => tracing::info!("new connections get the new certificate"),
            // Certificate and key are two files: this may be the moment between the two writes.
            Ok(Err(error)) => tracing::warn!(%error, "the old certificate stays in use"),
            Ok(Ok(false)) | Err(_) => {}
        }
    }
}

/// Returns when the next check is due, or on SIGHUP.
async fn next_check(hangups: Option<&mut Signal>) {
    let hangup = async {
        match hangups {
            Some(hangups) => hangups.recv().await,
            None => std::future::pending().await,
        }
    };
    // Timeout or signal: both mean that a check is due.
    let _ = tokio::time::timeout(CHECK_INTERVAL, hangup).await;
}
