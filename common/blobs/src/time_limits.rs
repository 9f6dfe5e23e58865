//! How long a store may take.

use std::time::Duration;

use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use object_store::GetResult;
use tokio::time::timeout;

use super::BlobError;

/// A stream of bytes from the store.
pub type BlobStream = BoxStream<'static, Result<Bytes, BlobError>>;

/// How long a store may take to start responding to a read, including retries. A slow object store needs a second
/// or two; beyond that it hangs.
pub(super) const FIRST_BYTE: Duration = Duration::from_secs(5);

/// How long a started read may stall. The total time is not limited.
const STALL: Duration = Duration::from_secs(10);

/// Waits for `answer` with a time limit.
pub(super) async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, object_store::Error>>,
) -> Result<T, BlobError> {
    Ok(timeout(limit, answer).await.map_err(|_| BlobError::Late)??)
}

/// The whole content of a read.
pub(super) async fn whole(result: GetResult) -> Result<Bytes, BlobError> {
    // Less than a megabyte per second counts as stalled.
    let limit = STALL + Duration::from_secs((result.range.end - result.range.start) >> 20);
    in_time(limit, result.bytes()).await
}

/// The content of a read as a stream that fails if it stalls.
pub(super) fn with_stall_timeout(
    stream: BoxStream<'static, object_store::Result<Bytes>>,
) -> BlobStream {
    let next = async |mut stream: BoxStream<'static, object_store::Result<Bytes>>| {
        let next = in_time(STALL, stream.try_next()).await?;
        Ok(next.map(|bytes| (bytes, stream)))
    };
    stream::try_unfold(stream, next).boxed()
}
