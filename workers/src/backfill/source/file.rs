//! The bytes of opened files.

use std::{
    fs::File,
    io::{self, Read},
};

use bytes::Bytes;
use futures::stream::{self, StreamExt};

use super::{candidate::ByteStream, error::SourceError, reader::Reader};

/// Bytes of one read.
const CHUNK_BYTES: usize = 256 * 1024;

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
            stream(reader, File::open(&path).expect("open")).try_collect().await.expect("read");
        assert_eq!(chunks.concat(), bytes);
    }
}
