-- Who works, and what a worker must understand.

-- The registry: one row for each worker that lives, written by its heartbeat. Nothing depends on it
-- but what people and autoscalers are shown.
create table workers (
    id                uuid primary key,
    host              text not null,
    pid               bigint not null,
    version           text not null,
    -- 'running' or 'draining'.
    status            text not null,
    -- Arrays of names.
    kinds             jsonb not null,
    lanes             jsonb not null,
    concurrency       integer not null,
    -- Array of objects, one for each kind and lane: slots, busy, and what ended since the start.
    slots             jsonb not null,
    -- How often it means to beat, in ms.
    period_ms         bigint not null,
    started_at        timestamptz not null,
    last_heartbeat_at timestamptz not null
) with (fillfactor = 50);

-- What a worker must understand to run the job; older workers leave it to newer ones. (Not `version`: the
-- statements of the release before have that of the task in the same scope.)
alter table jobs add column needs_version integer not null default 1;
