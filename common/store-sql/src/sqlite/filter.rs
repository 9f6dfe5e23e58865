//! A task filter as the end of a `where` over `tasks`.

use safelight_domain::TaskKind;
use safelight_store::TaskFilter;
use sqlx::{QueryBuilder, Sqlite};

/// Adds ` and …` for each thing that the filter asks for.
pub fn push(query: &mut QueryBuilder<Sqlite>, filter: &TaskFilter) {
    if let Some(status) = filter.status {
        query.push(" and status = ").push_bind(status.as_str());
    }
    // Spelled out, because a partial index serves no parameter.
    match filter.kind {
        Some(TaskKind::Upload) => query.push(" and kind = 'upload'"),
        Some(TaskKind::Rendition) => query.push(" and kind = 'rendition'"),
        Some(TaskKind::Backfill) => query.push(" and kind = 'backfill'"),
        Some(TaskKind::Verify) => query.push(" and kind = 'verify'"),
        Some(TaskKind::Delete) => query.push(" and kind = 'delete'"),
        None => &mut *query,
    };
    if let Some(owner) = &filter.owner {
        query.push(" and owner = ").push_bind(owner.clone());
    }
    if let Some(before) = filter.created_before {
        query.push(" and created_at < ").push_bind(before.timestamp_micros());
    }
    if let Some(after) = filter.created_after {
        query.push(" and created_at >= ").push_bind(after.timestamp_micros());
    }
    if filter.job_kind.is_none() && filter.code.is_none() {
        return;
    }
    query.push(" and exists (select 1 from jobs j where j.task_id = tasks.id");
    if let Some(kind) = filter.job_kind {
        query.push(" and j.kind = ").push_bind(kind.as_str());
        if let Some(status) = filter.status {
            query.push(" and j.status = ").push_bind(status.as_str());
        }
    }
    if let Some(code) = filter.code {
        query.push(" and j.error_code = ").push_bind(code.as_str());
    }
    query.push(")");
}
