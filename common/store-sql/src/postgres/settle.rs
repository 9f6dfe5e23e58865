//! Settles: ending attempts, each with all its effects, in one statement for all that are ready.

use std::fmt::Write;

use safelight_domain::{ImageFacts, JobId, Rendition};
use safelight_store::{Effect, Settled, StoreError, ending::Ending};
use serde::Serialize;
use sqlx::{PgConnection, Row, types::Json};

use super::{
    finish::finish_tasks,
    gather::{Answers, Call, Locked, call_index},
    notices::{insert_notices, replace_notices},
};
use crate::{calls::Settling, convert::micros};

/// The settles of a statement: its one parameter is a JSON array of [`Settlement`]s.
macro_rules! calls {
    () => {
        "calls as (
             select * from jsonb_to_recordset($1)
                 as a (call_index bigint, job uuid, fence int, status text, released int,
                       delay_us bigint, code text, message text, note text, facts jsonb,
                       renditions jsonb, placeholder jsonb, forgotten jsonb, proxies int))"
    };
}

/// The jobs whose lease is still held, ended.
macro_rules! jobs {
    () => {
        "job as (
             update jobs j
             set status = case when a.status = 'queued'
                                    and j.fence - j.released - a.released >= j.max_attempts
                               then 'failed' else a.status end,
                 released = j.released + a.released,
                 run_at = case a.status when 'queued' then now() + a.delay_us * interval '1 microsecond'
                                        else j.run_at end,
                 waiting_since = case a.status
                     when 'queued' then now() + a.delay_us * interval '1 microsecond'
                     else j.waiting_since end,
                 error_code = case when a.released = 0 or a.code is not null then a.code
                                   else j.error_code end,
                 error_message = case when a.released = 0 or a.code is not null then a.message
                                      else j.error_message end,
                 note = case a.released when 0 then a.note else j.note end,
                 lease_until = null, worker_id = null, updated_at = now()
             from calls a
             where j.id = any(array(select id from found where held)) and j.id = a.job
             returning a.call_index, j.id, j.task_id, j.image_id, j.kind, j.lane, j.share, j.fence,
                       j.status, j.run_at)"
    };
}

/// Outbox rows of jobs that are queued again.
macro_rules! notices {
    () => {
        concat!(
            "notice as (",
            insert_notices!(),
            "run_at from job where status = 'queued' order by id",
            replace_notices!(),
            ")"
        )
    };
}

/// [`Effect::StoredBlob`] and [`Effect::ForgetImage`]. The effects of two jobs on one image are written together: a
/// statement changes a row once.
macro_rules! images {
    () => {
        "changed as (
             select job.image_id, bool_or(a.facts is not null) as stored,
                    max(f.format) as format, max(f.width) as width, max(f.height) as height,
                    max(f.orientation) as orientation, max(f.taken_at) as taken_at,
                    max((f.gps ->> 'latitude')::float8) as latitude,
                    max((f.gps ->> 'longitude')::float8) as longitude,
                    bool_or(job.status = 'succeeded'
                            and (job.kind = 'thumbnail' or a.renditions is not null)) as rendered,
                    bool_or(a.proxies is not null) as forgotten
             from job join calls a on a.call_index = job.call_index
             left join lateral jsonb_to_record(a.facts)
                 as f (format text, width int, height int, orientation smallint,
                       taken_at timestamp, gps jsonb) on true
             group by job.image_id),
         locked_images as (
             select i.id from images i join changed c on c.image_id = i.id
             where c.stored or c.forgotten or (c.rendered and i.fresh)
             order by i.id for no key update of i),
         image as (
             update images i
             set format = coalesce(c.format, i.format), width = coalesce(c.width, i.width),
                 height = coalesce(c.height, i.height),
                 orientation = coalesce(c.orientation, i.orientation),
                 taken_at = case when c.stored then c.taken_at else i.taken_at end,
                 latitude = case when c.stored then c.latitude else i.latitude end,
                 longitude = case when c.stored then c.longitude else i.longitude end,
                 stored_at = case when c.stored then now() else i.stored_at end,
                 fresh = i.fresh and not c.rendered,
                 -- Nothing of a deleted picture is kept, not even the hash of its bytes.
                 sha256 = case when c.forgotten then decode(repeat('00', 32), 'hex')
                               else i.sha256 end,
                 removed_at = case when c.forgotten then now() else i.removed_at end
             from changed c
             where i.id = any(array(select id from locked_images)) and i.id = c.image_id),
         receipt as (
             update deletions d set proxies = a.proxies, removal = null
             from job join calls a on a.call_index = job.call_index
             where d.task_id = job.task_id and a.proxies is not null)"
    };
}

/// [`Effect::UpsertRenditions`].
macro_rules! renditions {
    () => {
        "made as (
             insert into renditions (sha256, preset, fingerprint, format, width, height, bytes,
                                     rendition_sha256)
             select distinct on (i.sha256, m.preset, m.fingerprint, m.format)
                    i.sha256, m.preset, m.fingerprint, m.format, m.width, m.height, m.bytes,
                    decode(m.sha256, 'hex')
             from job join calls a on a.call_index = job.call_index
             join images i on i.id = job.image_id
             cross join lateral jsonb_to_recordset(a.renditions)
                 as m (preset text, fingerprint text, format text, width int, height int,
                       bytes bigint, sha256 text)
             order by i.sha256, m.preset, m.fingerprint, m.format, job.call_index desc
             on conflict (sha256, preset, fingerprint, format) do update
             set width = excluded.width, height = excluded.height, bytes = excluded.bytes,
                 rendition_sha256 = excluded.rendition_sha256,
                 created_at = case
                     when renditions.rendition_sha256 = excluded.rendition_sha256
                          then renditions.created_at
                     else excluded.created_at end)"
    };
}

/// [`Effect::Placeholder`].
macro_rules! placeholders {
    () => {
        "placeholder as (
             insert into placeholders (sha256, thumbhash, dominant_color)
             select distinct on (i.sha256) i.sha256, decode(p.thumbhash, 'hex'), p.color
             from job join calls a on a.call_index = job.call_index
             join images i on i.id = job.image_id
             cross join lateral jsonb_to_record(a.placeholder) as p (thumbhash text, color text)
             where a.placeholder is not null
             order by i.sha256, job.call_index desc
             on conflict (sha256) do update
             set thumbhash = excluded.thumbhash, dominant_color = excluded.dominant_color)"
    };
}

/// [`Effect::ForgetRenditions`].
macro_rules! forgotten_renditions {
    () => {
        "forgotten as (
             delete from renditions r
             using job join calls a on a.call_index = job.call_index
             join images i on i.id = job.image_id
             cross join lateral jsonb_to_recordset(a.forgotten)
                 as f (preset text, fingerprint text, format text)
             where r.sha256 = i.sha256 and r.preset = f.preset
               and r.fingerprint = f.fingerprint and r.format = f.format)"
    };
}

/// Settles attempts: a row for each whose job was found. The rows of jobs are locked first, those of tasks after
/// them and in one order, as everywhere, and so are those that equal uploads share.
macro_rules! settle_statement {
    ($locked:literal) => {
        concat!(
            "with ",
            calls!(),
            ", found as (
                 select j.id, a.call_index, j.fence = a.fence and j.status = 'running' as held
                 from jobs j join calls a on a.job = j.id
                 where j.id = any(array(select job from calls)) for update of j ",
            $locked,
            "), ",
            jobs!(),
            ", ",
            finish_tasks!("c.jobs"),
            ", ",
            notices!(),
            ", ",
            images!(),
            ", ",
            renditions!(),
            ", ",
            placeholders!(),
            ", ",
            forgotten_renditions!(),
            " select call_index, held from found"
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
        let settlements: Vec<_> =
            (1..).zip(calls).map(|(call_index, call)| Settlement::of(call_index, call)).collect();
        let rows = sqlx::query(statement).bind(Json(settlements)).fetch_all(conn).await?;
        rows.iter()
            .map(|row| {
                let held: bool = row.try_get("held")?;
                let answer = if held { Settled::Applied } else { Settled::Stale };
                Ok((call_index(row)?, Ok(answer)))
            })
            .collect()
    }
}

/// A settle as the statement reads it.
#[derive(Serialize)]
struct Settlement<'a> {
    /// The number of the call, from 1.
    call_index: usize,
    job: JobId,
    fence: u32,
    status: &'a str,
    released: u32,
    delay_us: i64,
    code: Option<&'a str>,
    message: Option<&'a str>,
    note: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    facts: Option<&'a ImageFacts>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    renditions: Vec<&'a Rendition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    placeholder: Option<StoredPlaceholder>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    forgotten: Vec<&'a Rendition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxies: Option<u32>,
}

/// A placeholder in the form of its columns.
#[derive(Serialize)]
struct StoredPlaceholder {
    /// Hexadecimal.
    thumbhash: String,
    color: String,
}

impl<'a> Settlement<'a> {
    fn of(call_index: usize, call: &'a Settling) -> Self {
        let ending = Ending::of(&call.outcome);
        let mut settlement = Self {
            call_index,
            job: call.lease.job,
            fence: call.lease.fence,
            status: ending.status.as_str(),
            released: ending.released,
            delay_us: micros(ending.delay),
            code: ending.failure.map(|failure| failure.code.as_str()),
            message: ending.failure.map(|failure| failure.message.as_str()),
            note: ending.note,
            facts: None,
            renditions: Vec::new(),
            placeholder: None,
            forgotten: Vec::new(),
            proxies: None,
        };
        for effect in ending.effects {
            settlement.add(effect);
        }
        settlement
    }

    fn add(&mut self, effect: &'a Effect) {
        match effect {
            Effect::StoredBlob(facts) => self.facts = Some(facts),
            Effect::UpsertRenditions(made) => self.renditions.extend(made),
            Effect::Placeholder(new) => {
                let (thumbhash, color) = (hexadecimal(&new.thumbhash), new.css_color());
                self.placeholder = Some(StoredPlaceholder { thumbhash, color });
            }
            Effect::ForgetRenditions(gone) => self.forgotten.extend(gone),
            Effect::ForgetImage { proxies } => self.proxies = Some(*proxies),
            // It has a separate column.
            Effect::Note(_) => {}
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
