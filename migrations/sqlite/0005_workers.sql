-- Who works, and what a worker must understand.

-- The registry: one row for each worker that lives, written by its heartbeat. Nothing depends on it
-- but what people and autoscalers are shown.
create table workers (
    id                blob primary key,
    host              text not null,
    pid               integer not null,
    version           text not null,
    -- 'running' or 'draining'.
    status            text not null,
    -- Arrays of names.
    kinds             text not null,
    lanes             text not null,
    concurrency       integer not null,
    -- Array of objects, one for each kind and lane: slots, busy, and what ended since the start.
    slots             text not null,
    -- How often it means to beat, in ms.
    period_ms         integer not null,
    started_at        integer not null,
    last_heartbeat_at integer not null
);

-- What a worker must understand to run the job; older workers leave it to newer ones. (Not `version`: the
-- statements of the release before have that of the task in the same scope.)
alter table jobs add column needs_version integer not null default 1;
