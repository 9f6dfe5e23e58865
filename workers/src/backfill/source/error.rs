//! Why a source cannot be read.

use std::{io, path::Path, time::Duration};

use nix::libc;
use safelight_blobs::BlobError;

/// Why a source cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// It will never be readable; with the reason, for people.
    #[error("{0}")]
    Unusable(String),
    /// A pipe, a device or a folder where a plain file was expected.
    #[error("it is no plain file")]
    NotAFile,
    /// It may not be read.
    #[error("{0}")]
    Forbidden(String),
    /// It sent nothing for this long.
    #[error("nothing came from the source for {} seconds", .0.as_secs())]
    Silent(Duration),
    /// A file system that failed, and may work again.
    #[error("cannot read the source: {0}")]
    Io(#[source] io::Error),
    /// An object store that failed, and may work again.
    #[error("cannot read the source: {0}")]
    Store(#[source] BlobError),
}

impl SourceError {
    /// An error of the file system at `path`. It is final unless it is known to be temporary.
    pub(super) fn at(path: &Path, error: io::Error) -> Self {
        if is_temporary(&error) {
            return Self::Io(error);
        }
        Self::Unusable(format!("{}: {error}", path.display()))
    }

    /// Whether a later try would fail as well.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Io(_) | Self::Store(_) | Self::Silent(_))
    }
}

/// Whether a file system is unavailable, or this process has too many open files: not the fault of the file.
fn is_temporary(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let is_known = matches!(
        error.kind(),
        Kind::Interrupted
            | Kind::WouldBlock
            | Kind::TimedOut
            | Kind::OutOfMemory
            | Kind::NotConnected
            | Kind::ConnectionAborted
            | Kind::ConnectionRefused
            | Kind::ConnectionReset
            | Kind::HostUnreachable
            | Kind::NetworkDown
            | Kind::NetworkUnreachable
    );
    is_known || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}
