//! A backfill's report, line by line: read from the store in pages while the client takes it.

use std::sync::Arc;

use axum::body::Bytes;
use futures::{Stream, StreamExt, stream};
use safelight_domain::{ItemOutcome, TaskId};
use safelight_store::{Backfills, ReportLine, StoreError};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    auth::Caller,
    http::problem::Problem,
    limits::{Held, InMemory},
};

/// Lines per page. A download holds two pages at most, and a line has up to some KiB.
const PAGE: u32 = 200;

/// What a download counts among the documents in memory, in bytes.
const DOWNLOAD_BYTES: usize = 1 << 20;

/// One line of a backfill's report.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BackfillItem)]
pub struct ItemDocument {
    /// The image's id; for an entry that could not be imported, an id of this line only.
    pub id: Uuid,
    /// The result.
    pub outcome: ItemOutcome,
    /// Why the image was skipped, or the error code of its failure.
    pub reason: Option<String>,
    /// Details for humans.
    pub detail: Option<String>,
    /// For an import: where the image was found.
    pub source: Option<String>,
}

/// A permit for a download, which its client may take as slowly as it likes.
pub fn permit(memory: &InMemory, caller: &Caller) -> Result<Held, Problem> {
    memory.document(caller, DOWNLOAD_BYTES)
}

/// All lines after `after`. The first page is read before the response starts, so that an error can still be
/// reported; a later error breaks the response off.
pub async fn lines(
    store: Arc<dyn Backfills>,
    id: TaskId,
    after: Option<Uuid>,
    held: Held,
) -> Result<impl Stream<Item = Result<Bytes, StoreError>>, StoreError> {
    let first = store.backfill_report(id, after, PAGE).await?;
    Ok(stream::try_unfold(Some(first), move |page| {
        let _ = &held;
        let store = store.clone();
        async move {
            let Some(page) = page else { return Ok(None) };
            let Some(last) = page.last().map(|item| item.id) else { return Ok(None) };
            let is_last = page.len() < PAGE as usize;
            let text = text(page);
            let next = if is_last {
                None
            } else {
                Some(store.backfill_report(id, Some(last), PAGE).await?)
            };
            Ok(Some((text, next)))
        }
    })
    .boxed())
}

fn text(page: Vec<ReportLine>) -> Bytes {
    let mut text = Vec::new();
    for ReportLine { id, outcome, reason, detail, source } in page {
        let line = ItemDocument { id, outcome, reason, detail, source };
        // Strings and an id: serializing them to JSON cannot fail.
        if serde_json::to_writer(&mut text, &line).is_ok() {
            text.push(b'\n');
        }
    }
    text.into()
}
