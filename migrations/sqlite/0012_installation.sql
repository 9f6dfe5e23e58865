-- The name of this installation, which the blob store carries too: a store that is not this installation's is refused.
-- One row.
create table installation (
    one integer primary key default 1 check (one = 1),
    id blob not null default (randomblob(16)),
    created_at integer not null default (unixepoch() * 1000000),
    -- When the blob store was marked with the id. From then on a store without the mark is not this installation's.
    marked_at integer,
    -- Grows while workers run, and is copied to the blob store: a database with a smaller number than its store is an
    -- older copy, and does not know what was stored since.
    generation integer not null default 0,
    -- The line of history of the database server. Unused: SQLite has none.
    lineage text,
    -- Until then nothing is removed for the reason alone that the database does not know it.
    keep_unknown_until integer
) strict;
insert into installation default values;

-- The latest time that the database's clock has shown. An earlier time means that the clock was set back. One row.
create table database_clock (
    one integer primary key default 1 check (one = 1),
    seen_at integer not null default 0
) strict;
insert into database_clock default values;
