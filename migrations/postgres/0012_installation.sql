-- The name of this installation, which the blob store carries too: a store that is not this installation's is refused.
-- One row.
create table installation (
    one boolean primary key default true check (one),
    id uuid not null default gen_random_uuid(),
    created_at timestamptz not null default now(),
    -- When the blob store was marked with the id. From then on a store without the mark is not this installation's.
    marked_at timestamptz,
    -- Grows while workers run, and is copied to the blob store: a database with a smaller number than its store is an
    -- older copy, and does not know what was stored since.
    generation bigint not null default 0,
    -- The line of history of the database server. Another one means that a standby was promoted or a copy restored.
    lineage text,
    -- Until then nothing is removed for the reason alone that the database does not know it.
    keep_unknown_until timestamptz
);
insert into installation default values;

-- The latest time that the database's clock has shown. An earlier time means that the clock was set back. One row.
create table database_clock (
    one boolean primary key default true check (one),
    seen_at timestamptz not null default now()
);
insert into database_clock default values;
