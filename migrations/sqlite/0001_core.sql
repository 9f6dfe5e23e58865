-- The whole truth of Safelight: images, tasks, jobs, and what is still to be published.
-- Times are microseconds since 1970 (UTC); ids are the 16 bytes of the UUID.

create table images (
    id          blob primary key,
    sha256      blob not null check (length(sha256) = 32),
    bytes       integer not null,
    format      text not null,
    title       text,
    tags        text not null default '[]',
    filename    text,
    -- Learnt by the write job; null until then.
    width       integer,
    height      integer,
    orientation integer,
    taken_at    text,
    latitude    real,
    longitude   real,
    created_at  integer not null,
    stored_at   integer
);
-- Equal uploads share a blob: who else uses it?
create index images_by_sha256 on images (sha256);

-- Renditions belong to the blob, so that equal uploads share them.
create table renditions (
    sha256           blob not null,
    preset           text not null,
    fingerprint      text not null,
    format           text not null,
    width            integer not null,
    height           integer not null,
    bytes            integer not null,
    rendition_sha256 blob not null,
    created_at       integer not null,
    primary key (sha256, preset, fingerprint, format)
);

create table tasks (
    id             blob primary key,
    kind           text not null,
    lane           text not null,
    status         text not null,
    -- Grows with every change of the task or of one of its jobs.
    version        integer not null default 1,
    image_id       blob references images (id),
    -- Counters, because a backfill has too many jobs to count them at every settle.
    jobs_total     integer not null,
    jobs_succeeded integer not null default 0,
    jobs_failed    integer not null default 0,
    jobs_cancelled integer not null default 0,
    created_at     integer not null,
    updated_at     integer not null,
    finished_at    integer
);
create index tasks_by_status on tasks (status, id);
create index tasks_by_image on tasks (image_id);
-- Few among many uploads.
create index tasks_of_backfills on tasks (id) where kind = 'backfill';

create table jobs (
    id            blob primary key,
    task_id       blob not null references tasks (id),
    image_id      blob not null references images (id),
    kind          text not null,
    lane          text not null,
    status        text not null,
    -- Counts every claim; the fence of every effect. Never lowered.
    fence         integer not null default 0,
    -- Claims that were handed back and do not count as attempts: attempt = fence - released.
    released      integer not null default 0,
    max_attempts  integer not null,
    -- When it may run.
    run_at        integer not null,
    -- When it last became due or was last put into the outbox: how long its message has been away.
    waiting_since integer not null,
    lease_until   integer,
    worker_id     blob,
    error_code    text,
    error_message text,
    created_at    integer not null,
    updated_at    integer not null
);
create index jobs_by_task on jobs (task_id, id);
create index jobs_waiting on jobs (kind, lane, waiting_since, run_at) where status = 'queued';
create index jobs_leased on jobs (lease_until) where status = 'running';
create index jobs_failed on jobs (kind, lane) where status = 'failed';

-- Jobs whose doorbell must still be rung. Narrow and nearly always empty.
create table outbox (
    job_id     blob primary key references jobs (id),
    kind       text not null,
    lane       text not null,
    generation integer not null,
    due_at     integer not null
);
create index outbox_due on outbox (due_at);

create table idempotency_keys (
    owner       text not null,
    key         text not null,
    -- The reservation; another may take it after held_until unless it was accepted.
    token       blob not null,
    held_until  integer not null,
    -- Both set when the upload was accepted.
    fingerprint blob,
    task_id     blob references tasks (id),
    created_at  integer not null,
    primary key (owner, key)
);
create index idempotency_keys_by_age on idempotency_keys (created_at);
