//! A task filter as conditions on `tasks`.

use safelight_domain::TaskKind;
use safelight_store::TaskFilter;
use sqlx::QueryBuilder;

use super::dialect::{Db, instant};

/// Adds ` and …` for each condition of the filter.
pub fn push(query: &mut QueryBuilder<Db>, filter: &TaskFilter) {
    if let Some(status) = filter.status {
        query.push(" and status = ").push_bind(status.as_str());
    }
    // As literals, because a partial index does not match a parameter.
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
        query.push(" and created_at < ").push_bind(instant(before));
    }
    if let Some(after) = filter.created_after {
        query.push(" and created_at >= ").push_bind(instant(after));
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
