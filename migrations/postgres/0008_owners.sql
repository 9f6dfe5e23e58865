-- Keys, owners, quotas, and who may see an image.

-- Empty for the local owner: what was made without a key.
alter table images
    add column owner      text not null default '',
    add column visibility text not null default 'public',
    -- Its renditions have not been made yet. Until then it shows none, not even those that another
    -- owner's equal image has: nobody can tell that there is one.
    add column fresh      boolean not null default false;
create index images_by_owner on images (owner, id) where discarded_at is null;
create index tasks_by_owner on tasks (owner, id);

create table api_keys (
    id            uuid primary key,
    -- How the secret begins, by which the row is found.
    prefix        text not null unique,
    owner         text not null,
    -- Names separated by commas.
    scopes        text not null,
    -- SHA-256: the secret has 256 random bits, so nothing slower is needed.
    secret_sha256 bytea not null check (octet_length(secret_sha256) = 32),
    created_at    timestamptz not null default now(),
    expires_at    timestamptz,
    revoked_at    timestamptz,
    last_used_at  timestamptz
);

-- For signed URLs. A signature is checked with the same secret that makes it, so it is kept as it is.
create table signing_keys (
    id         text primary key,
    owner      text not null,
    secret     bytea not null,
    created_at timestamptz not null default now(),
    revoked_at timestamptz
);
create index signing_keys_by_owner on signing_keys (owner);

-- What admins did.
create table audit_log (
    id     uuid primary key,
    at     timestamptz not null default now(),
    -- Who: the key's prefix and owner; null for the command line on the database itself.
    key    text,
    owner  text not null,
    action text not null,
    target text not null
);

-- How much each owner has stored: the sum over the shards. An accepting transaction adds to one shard
-- only, so that uploads of one owner rarely wait for each other's commits.
create table usage (
    owner  text not null,
    shard  smallint not null,
    images bigint not null default 0,
    bytes  bigint not null default 0,
    primary key (owner, shard)
) with (fillfactor = 50);

insert into usage (owner, shard, images, bytes)
select owner, 0, count(*), sum(bytes) from images where discarded_at is null group by owner;

-- Counted here and not by whoever writes: no way in or out can forget it, not even that of the release
-- before this one.
create function count_new_images() returns trigger language plpgsql as $$
begin
    insert into usage as u (owner, shard, images, bytes)
    select a.owner, pg_backend_pid() % 16, count(*), sum(a.bytes)
    from added a where a.discarded_at is null group by a.owner order by a.owner
    on conflict (owner, shard) do update
    set images = u.images + excluded.images, bytes = u.bytes + excluded.bytes;
    return null;
end $$;
create trigger count_new_images after insert on images
    referencing new table as added for each statement execute function count_new_images();

create function count_discarded_image() returns trigger language plpgsql as $$
begin
    insert into usage as u (owner, shard, images, bytes)
    values (old.owner, pg_backend_pid() % 16, -1, -old.bytes)
    on conflict (owner, shard) do update
    set images = u.images + excluded.images, bytes = u.bytes + excluded.bytes;
    return null;
end $$;
create trigger count_discarded_image after update of discarded_at on images
    for each row when (old.discarded_at is null and new.discarded_at is not null)
    execute function count_discarded_image();
