//! Settles: ending attempts, each with all its effects.

use safelight_domain::{ImageFacts, JobId, Placeholder, Rendition};
use safelight_store::{Lease, Outcome, Settled, StoreError, ending::Ending};
use sqlx::{PgConnection, Postgres, Row, postgres::PgArguments, query::Query};

use super::{
    gather::{Answers, Call, Locked},
    integer, interval, rows,
};
use crate::convert::to_i64;

/// One call of [`Store::settle`](safelight_store::Store::settle).
pub struct Settling {
    pub lease: Lease,
    pub outcome: Outcome,
}

/// Settles attempts: a row for each whose job was found.
///
/// The rows of jobs are locked first, those of tasks after them and in one order, as everywhere, and so
/// are those that equal uploads share. Two jobs of a task may settle at once: the second waits for the
/// task's row and then computes from the counters that the first has left there (READ COMMITTED
/// evaluates the row anew), so exactly one of them sees the last job end. Two of one statement are
/// counted together.
macro_rules! settle_statement {
    ($locked:literal) => {
        concat!(
            "with asked as (
                 select * from unnest($1::uuid[], $2::int[], $3::text[], $4::int[], $5::interval[],
                                      $6::text[], $7::text[], $8::text[]) with ordinality
                     as a (id, fence, status, released, delay, code, message, note, place)),
             found as (
                 select j.id, a.place, j.fence = a.fence and j.status = 'running' as held
                 from jobs j join asked a on a.id = j.id
                 where j.id = any($1) for update of j ",
            $locked,
            "),
             job as (
                 update jobs j
                 set status = case when a.status = 'queued'
                                        and j.fence - j.released - a.released >= j.max_attempts
                                   then 'failed' else a.status end,
                     released = j.released + a.released,
                     run_at = case a.status when 'queued' then now() + a.delay else j.run_at end,
                     waiting_since = case a.status when 'queued' then now() + a.delay
                                                   else j.waiting_since end,
                     error_code = case a.released when 0 then a.code else j.error_code end,
                     error_message = case a.released when 0 then a.message
                                                     else j.error_message end,
                     note = case a.released when 0 then a.note else j.note end,
                     lease_until = null, worker_id = null, updated_at = now()
                 from asked a
                 where j.id = any(array(select id from found where held)) and j.id = a.id
                 returning a.place, j.id, j.task_id, j.image_id, j.kind, j.lane, j.share, j.fence,
                           j.status, j.run_at),
             counted as (
                 select task_id, count(*)::int as jobs,
                        count(*) filter (where status = 'succeeded')::int as succeeded,
                        count(*) filter (where status = 'failed')::int as failed
                 from job group by task_id),
             locked as (
                 select id from tasks where id = any(array(select task_id from counted))
                 order by id for no key update),
             task as (
                 update tasks t
                 set jobs_succeeded = jobs_succeeded + c.succeeded,
                     jobs_failed = jobs_failed + c.failed,
                     version = version + c.jobs, updated_at = now(),
                     status = case
                         when jobs_succeeded + jobs_failed + jobs_cancelled
                              + c.succeeded + c.failed < jobs_total then t.status
                         when jobs_cancelled > 0 then 'cancelled'
                         when jobs_failed + c.failed > 0 then 'failed'
                         else 'succeeded' end,
                     finished_at = case
                         when jobs_succeeded + jobs_failed + jobs_cancelled
                              + c.succeeded + c.failed < jobs_total then finished_at
                         else now() end
                 from counted c
                 where t.id = any(array(select id from locked)) and t.id = c.task_id),
             bell as (
                 insert into outbox (job_id, kind, lane, share, generation, due_at)
                 select id, kind, lane, share, fence, run_at from job where status = 'queued'
                 order by id
                 on conflict (job_id) do update
                 set generation = excluded.generation, due_at = excluded.due_at),
             -- What two jobs of one image leave on it is written together: a statement changes a row once.
             changed as (
                 select job.image_id, bool_or(f.place is not null) as written,
                        max(f.format) as format, max(f.width) as width, max(f.height) as height,
                        max(f.orientation) as orientation, max(f.taken_at) as taken_at,
                        max(f.latitude) as latitude, max(f.longitude) as longitude,
                        bool_or(job.status = 'succeeded'
                                and (job.kind = 'thumbnail' or job.place = any($17))) as rendered,
                        bool_or(g.place is not null) as gone
                 from job
                 left join unnest($9::bigint[], $10::text[], $11::int[], $12::int[],
                                  $13::smallint[], $14::timestamp[], $15::float8[], $16::float8[])
                     as f (place, format, width, height, orientation, taken_at, latitude, longitude)
                     on f.place = job.place
                 left join unnest($32::bigint[], $33::int[]) as g (place, proxies)
                     on g.place = job.place
                 group by job.image_id),
             locked_images as (
                 select i.id from images i join changed c on c.image_id = i.id
                 where c.written or c.gone or (c.rendered and i.fresh)
                 order by i.id for no key update of i),
             image as (
                 update images i
                 set format = coalesce(c.format, i.format), width = coalesce(c.width, i.width),
                     height = coalesce(c.height, i.height),
                     orientation = coalesce(c.orientation, i.orientation),
                     taken_at = case when c.written then c.taken_at else i.taken_at end,
                     latitude = case when c.written then c.latitude else i.latitude end,
                     longitude = case when c.written then c.longitude else i.longitude end,
                     stored_at = case when c.written then now() else i.stored_at end,
                     fresh = i.fresh and not c.rendered,
                     -- Nothing is left of a deleted picture, not even the hash of its bytes.
                     sha256 = case when c.gone then decode(repeat('00', 32), 'hex')
                                   else i.sha256 end,
                     removed_at = case when c.gone then now() else i.removed_at end
                 from changed c
                 where i.id = any(array(select id from locked_images)) and i.id = c.image_id),
             made as (
                 insert into renditions (sha256, preset, fingerprint, format, width, height, bytes,
                                         rendition_sha256)
                 select distinct on (i.sha256, m.preset, m.fingerprint, m.format)
                        i.sha256, m.preset, m.fingerprint, m.format, m.width, m.height, m.bytes,
                        m.rendition_sha256
                 from job join images i on i.id = job.image_id
                 join unnest($17::bigint[], $18::text[], $19::text[], $20::text[], $21::int[],
                             $22::int[], $23::bigint[], $24::bytea[])
                     as m (place, preset, fingerprint, format, width, height, bytes,
                           rendition_sha256) on m.place = job.place
                 order by i.sha256, m.preset, m.fingerprint, m.format, m.place desc
                 on conflict (sha256, preset, fingerprint, format) do update
                 set width = excluded.width, height = excluded.height, bytes = excluded.bytes,
                     rendition_sha256 = excluded.rendition_sha256,
                     created_at = case
                         when renditions.rendition_sha256 = excluded.rendition_sha256
                              then renditions.created_at
                         else excluded.created_at end),
             placeholder as (
                 insert into placeholders (sha256, thumbhash, dominant_color)
                 select distinct on (i.sha256) i.sha256, p.thumbhash, p.color
                 from job join images i on i.id = job.image_id
                 join unnest($25::bigint[], $26::bytea[], $27::text[])
                     as p (place, thumbhash, color) on p.place = job.place
                 order by i.sha256, p.place desc
                 on conflict (sha256) do update
                 set thumbhash = excluded.thumbhash, dominant_color = excluded.dominant_color),
             forgotten as (
                 delete from renditions r
                 using job join images i on i.id = job.image_id
                 join unnest($28::bigint[], $29::text[], $30::text[], $31::text[])
                     as f (place, preset, fingerprint, format) on f.place = job.place
                 where r.sha256 = i.sha256 and r.preset = f.preset
                   and r.fingerprint = f.fingerprint and r.format = f.format),
             receipt as (
                 update deletions d set proxies = g.proxies, removal = null
                 from job join unnest($32::bigint[], $33::int[]) as g (place, proxies)
                     on g.place = job.place
                 where d.task_id = job.task_id)
             select place, held from found"
        )
    };
}

impl Call for Settling {
    type Answer = Settled;

    const UNKNOWN: Settled = Settled::Stale;

    fn job(&self) -> JobId {
        self.lease.job
    }

    async fn carry_out(
        conn: &mut PgConnection,
        calls: &[Self],
        locked: Locked,
    ) -> Result<Answers<Settled>, StoreError> {
        let statement = match locked {
            Locked::Skip => settle_statement!("skip locked"),
            Locked::Wait => settle_statement!(""),
        };
        let query = bind_endings(sqlx::query(statement), calls);
        let rows = Effects::of(calls).bind(query).fetch_all(conn).await?;
        rows.iter()
            .map(|row| {
                let held: bool = row.try_get("held")?;
                let answer = if held { Settled::Applied } else { Settled::Stale };
                Ok((rows::place(row)?, Ok(answer)))
            })
            .collect()
    }
}

type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// Binds `$1` to `$8`.
fn bind_endings<'q>(query: Statement<'q>, calls: &'q [Settling]) -> Statement<'q> {
    let endings: Vec<Ending<'q>> = calls.iter().map(|call| Ending::of(&call.outcome)).collect();
    let failures = || endings.iter().map(|ending| ending.failure);
    query
        .bind(calls.iter().map(|call| call.lease.job.0).collect::<Vec<_>>())
        .bind(calls.iter().map(|call| integer(call.lease.fence)).collect::<Vec<_>>())
        .bind(endings.iter().map(|ending| ending.status.as_str()).collect::<Vec<_>>())
        .bind(endings.iter().map(|ending| ending.released).collect::<Vec<_>>())
        .bind(endings.iter().map(|ending| interval(ending.delay)).collect::<Vec<_>>())
        .bind(failures().map(|one| one.map(|one| one.code.as_str())).collect::<Vec<_>>())
        .bind(failures().map(|one| one.map(|one| one.message.as_str())).collect::<Vec<_>>())
        .bind(endings.iter().map(|ending| ending.note).collect::<Vec<_>>())
}

/// What successes leave behind, each with the place of its call (from 1).
#[derive(Default)]
struct Effects<'q> {
    facts: Vec<(i64, &'q ImageFacts)>,
    made: Vec<(i64, &'q Rendition)>,
    placeholders: Vec<(i64, &'q Placeholder)>,
    forgotten: Vec<(i64, &'q Rendition)>,
    /// Proxies that have confirmed a deletion.
    deleted: Vec<(i64, &'q u32)>,
}

impl<'q> Effects<'q> {
    fn of(calls: &'q [Settling]) -> Self {
        let mut effects = Self::default();
        for (place, call) in (1..).zip(calls) {
            match &call.outcome {
                Outcome::Written(facts) => effects.facts.push((place, facts)),
                Outcome::Rendered { renditions, placeholder } => {
                    effects.made.extend(renditions.iter().map(|one| (place, one)));
                    effects.placeholders.extend(placeholder.iter().map(|one| (place, one)));
                }
                Outcome::Verified { repaired, forgotten, .. } => {
                    effects.made.extend(repaired.iter().map(|one| (place, one)));
                    effects.forgotten.extend(forgotten.iter().map(|one| (place, one)));
                }
                Outcome::Deleted { proxies } => effects.deleted.push((place, proxies)),
                Outcome::Retry(..) | Outcome::Failed(_) | Outcome::Released => {}
            }
        }
        effects
    }

    /// Binds `$9` to `$33`.
    fn bind(&self, query: Statement<'q>) -> Statement<'q> {
        let Self { facts, made, placeholders, forgotten, deleted } = self;
        query
            .bind(places(facts))
            .bind(column(facts, |one| one.format.as_str()))
            .bind(column(facts, |one| integer(one.width)))
            .bind(column(facts, |one| integer(one.height)))
            .bind(column(facts, |one| i16::from(one.orientation)))
            .bind(column(facts, |one| one.taken_at))
            .bind(column(facts, |one| one.gps.map(|gps| gps.latitude)))
            .bind(column(facts, |one| one.gps.map(|gps| gps.longitude)))
            .bind(places(made))
            .bind(column(made, |one| one.preset.as_str()))
            .bind(column(made, |one| one.fingerprint.as_str()))
            .bind(column(made, |one| one.format.as_str()))
            .bind(column(made, |one| integer(one.width)))
            .bind(column(made, |one| integer(one.height)))
            .bind(column(made, |one| to_i64(one.bytes)))
            .bind(column(made, |one| one.sha256.as_bytes()))
            .bind(places(placeholders))
            .bind(column(placeholders, |one| one.thumbhash.as_slice()))
            .bind(column(placeholders, Placeholder::css_color))
            .bind(places(forgotten))
            .bind(column(forgotten, |one| one.preset.as_str()))
            .bind(column(forgotten, |one| one.fingerprint.as_str()))
            .bind(column(forgotten, |one| one.format.as_str()))
            .bind(places(deleted))
            .bind(column(deleted, |proxies| integer(*proxies)))
    }
}

fn places<T>(effects: &[(i64, &T)]) -> Vec<i64> {
    effects.iter().map(|(place, _)| *place).collect()
}

/// What `of` says of each effect.
fn column<'q, T, C>(effects: &[(i64, &'q T)], of: impl Fn(&'q T) -> C) -> Vec<C> {
    effects.iter().map(|(_, one)| of(one)).collect()
}
