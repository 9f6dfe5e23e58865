//! The certificate that is served with, and its exchange.

use std::time::Duration;

use safelight_api::{Tls, TlsError};
use safelight_config::Config;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{exit::Exit, process};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// The configured certificate, if there is one.
pub fn load(config: &Config) -> Result<Option<Tls>, Exit> {
    let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) else {
        return Ok(None);
    };
    Tls::load(certificate, key).map(Some).map_err(|error| {
        Exit::failed(&error).hint(match error {
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

/// Keeps up with the files for as long as the process runs.
pub fn keep_current(tls: &Tls, shutdown: &CancellationToken) -> Result<(), Exit> {
    // Before the process says that it listens: from here on the signal no longer ends it.
    drop(signal(SignalKind::hangup()).map_err(Exit::failed)?);
    let tls = tls.clone();
    process::supervise("certificate", shutdown, move |token| follow(tls.clone(), token));
    Ok(())
}

async fn follow(tls: Tls, shutdown: CancellationToken) {
    let mut hangups = signal(SignalKind::hangup()).ok();
    while shutdown.run_until_cancelled(next_look(hangups.as_mut())).await.is_some() {
        let tls = tls.clone();
        match tokio::task::spawn_blocking(move || tls.reload()).await {
            Ok(Ok(true)) => tracing::info!("new connections get the new certificate"),
            // Whoever exchanges two files has a moment between them: the next look will tell.
            Ok(Err(error)) => tracing::warn!(%error, "the certificate stays as it was"),
            Ok(Ok(false)) | Err(_) => {}
        }
    }
}

/// Returns when it is time to look, or when somebody asks for it.
async fn next_look(hangups: Option<&mut Signal>) {
    let hangup = async {
        match hangups {
            Some(hangups) => hangups.recv().await,
            None => std::future::pending().await,
        }
    };
    // Either way.
    let _ = tokio::time::timeout(LOOK, hangup).await;
}
