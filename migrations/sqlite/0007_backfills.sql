-- Backfills: tasks that walk over many images. For each image that needs work a backfill makes a task
-- of its own, as an upload or a request would, but only as fast as these end; so neither the queue nor
-- these tables hold more than a window of them.

create table backfills (
    task_id         blob primary key references tasks (id),
    -- What was asked for: BackfillSpec.
    spec            text not null,
    state           text not null default 'walking',
    paused          integer not null default 0,
    cancelled       integer not null default 0,
    -- What failed before this time is being handed out again.
    retrying_since  integer,
    -- Everything up to here is in tasks or in backfill_items.
    cursor          text,
    -- Images to look at; null until they were counted.
    expected        integer,
    planned         integer not null default 0,
    -- {"reason": count}
    skipped         text not null default '{}',
    refused         integer not null default 0,
    -- Of those planned.
    succeeded       integer not null default 0,
    failed          integer not null default 0,
    cancelled_count integer not null default 0,
    -- Why the walk broke off.
    problem         text,
    -- Up to when its rate is used up.
    fed_at          integer,
    -- The process that walks, and until when it has the right to.
    foreman         blob,
    foreman_until   integer
);
create index backfills_open on backfills (task_id) where state <> 'ended';

-- What became of each image: one line of the report each.
create table backfill_items (
    task_id  blob not null references backfills (task_id),
    -- The image; of an import, for what never became one, an id made for the purpose.
    item     blob not null,
    outcome  text not null,
    -- Why it was skipped, or the code of its failure.
    reason   text,
    detail   text,
    -- Of an import: where it was found.
    source   text,
    primary key (task_id, item)
);

-- The backfill that made this task.
alter table tasks add column backfill_id blob references backfills (task_id);
-- Whether its end is counted there.
alter table tasks add column tallied integer not null default 0;
-- Of an import: where the image was found.
alter table tasks add column source text;
create index tasks_of_backfills_to_tally on tasks (backfill_id, tallied, status, id)
    where backfill_id is not null;

-- What a job found, where there is more to say than that it succeeded.
alter table jobs add column note text;
