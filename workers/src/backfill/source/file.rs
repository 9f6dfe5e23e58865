//! Files of a source, which may be of any type: only plain files are opened.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use nix::libc;

use super::{candidate::ByteStream, error::SourceError, reader::Reader};

/// Bytes of one read.
const CHUNK_BYTES: usize = 256 * 1024;

/// Opens a plain file. Anything else is an error: a pipe would wait for a writer, and a device would never
/// end.
pub(super) fn open(path: &Path) -> Result<File, SourceError> {
    let at = |error| SourceError::at(path, error);
    check(&std::fs::metadata(path).map_err(at)?)?;
    let mut options = OpenOptions::new();
    // If another file has replaced it meanwhile, opening must not block either.
    let file = options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = file.map_err(at)?;
    check(&file.metadata().map_err(at)?)?;
    Ok(file)
}

fn check(about: &Metadata) -> Result<(), SourceError> {
    if about.is_file() { Ok(()) } else { Err(SourceError::NotAFile) }
}

/// The bytes of an open file.
pub(super) fn stream(reader: Reader, file: File) -> ByteStream {
    stream::try_unfold((reader, file), |(reader, mut file)| async move {
        let read = reader.run(move |_| {
            let chunk = next_chunk(&mut file).map_err(SourceError::Io)?;
            Ok((chunk, file))
        });
        let (chunk, file) = read.await?;
        Ok((!chunk.is_empty()).then_some((chunk, (reader, file))))
    })
    .boxed()
}

fn next_chunk(file: &mut File) -> io::Result<Bytes> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => {
                chunk.truncate(read?);
                return Ok(chunk.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn stream_reads_file_to_its_end() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..=250).cycle().take(CHUNK_BYTES + 1000).collect();
        std::fs::write(&path, &bytes).expect("write");
        let reader = Reader::new(1, Duration::from_secs(9));
        let chunks: Vec<Bytes> =
            stream(reader, open(&path).expect("open")).try_collect().await.expect("read");
        assert_eq!(chunks.concat(), bytes);
    }

    #[test]
    fn open_accepts_only_regular_files() {
        let folder = tempfile::tempdir().expect("folder");
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
        assert!(made.success());
        for path in [pipe.as_path(), folder.path(), Path::new("/dev/zero")] {
            assert!(matches!(open(path), Err(SourceError::NotAFile)), "{}", path.display());
        }
    }

    #[test]
    fn open_distinguishes_permanent_from_temporary_errors() {
        let folder = tempfile::tempdir().expect("folder");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&link, &link).expect("link");
        let (long, nul) = (format!("/{}", "x".repeat(300)), "/a\0b".to_owned());
        let deep = "/x".repeat(5000);
        for path in [&*link.to_string_lossy(), &long, &nul, &deep, "/nowhere"] {
            let result = open(Path::new(path));
            assert!(matches!(result, Err(SourceError::Unusable(_))), "{result:?}");
        }
        for temporary in [libc::EMFILE, libc::ENOTCONN, libc::EHOSTUNREACH, libc::ETIMEDOUT] {
            let error = SourceError::at(Path::new("/"), io::Error::from_raw_os_error(temporary));
            assert!(matches!(error, SourceError::Io(_)), "{error}");
        }
        let bad_sector = SourceError::at(Path::new("/"), io::Error::from_raw_os_error(libc::EIO));
        assert!(matches!(bad_sector, SourceError::Unusable(_)), "{bad_sector}");
    }
}
