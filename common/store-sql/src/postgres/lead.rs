//! Who leads a backfill. The column `foreman` is its coordinator, and `foreman_until` the end of the lead.

use std::time::Duration;

use safelight_domain::{Backfill, WorkerId};
use safelight_store::StoreError;

use super::{
    backfill_rows::{backfill, backfill_columns},
    dialect::{micros_since, span},
    store::PostgresStore,
};

/// See [`Backfills::lead_backfills`](safelight_store::Backfills::lead_backfills).
pub async fn lead_backfills(
    store: &PostgresStore,
    coordinator: WorkerId,
    hold: Duration,
    limit: u32,
) -> Result<Vec<Backfill>, StoreError> {
    let query = sqlx::query(concat!(
        "with mine as (
             select task_id from backfills
             where state <> 'ended' and (foreman = $1 or foreman is null or foreman_until <= now())
             order by paused, task_id limit $3),
         due as (
             select task_id from backfills
             where task_id = any(array(select task_id from mine))
               and (foreman is null or foreman_until <= now()
                    or foreman = $1
                       and foreman_until not between now() + $2 * 0.67 and now() + $2)
             for update skip locked),
         renewed as (
             update backfills b set foreman = $1, foreman_until = now() + $2
             from due where b.task_id = due.task_id
             returning b.task_id)
         select",
        backfill_columns!("$4"),
        "from backfills b join tasks t on t.id = b.task_id
         where b.task_id = any(array(select task_id from mine))
           and (b.foreman = $1 or b.task_id in (select task_id from renewed))
         order by b.paused, b.task_id"
    ));
    let query = query.bind(coordinator).bind(span(hold)).bind(i64::from(limit));
    store.fetch_all(query).await?.iter().map(backfill).collect()
}
