-- Keys, owners, quotas, and who may see an image.

-- Empty for the local owner: what was made without a key.
alter table images add column owner text not null default '';
alter table images add column visibility text not null default 'public';
-- Its renditions have not been made yet. Until then it shows none, not even those that another owner's
-- equal image has: nobody can tell that there is one.
alter table images add column fresh integer not null default 0;
create index images_by_owner on images (owner, id) where discarded_at is null;
create index tasks_by_owner on tasks (owner, id);

create table api_keys (
    id            blob primary key,
    -- How the secret begins, by which the row is found.
    prefix        text not null unique,
    owner         text not null,
    -- Names separated by commas.
    scopes        text not null,
    -- SHA-256: the secret has 256 random bits, so nothing slower is needed.
    secret_sha256 blob not null check (length(secret_sha256) = 32),
    created_at    integer not null,
    expires_at    integer,
    revoked_at    integer,
    last_used_at  integer
);

-- For signed URLs. A signature is checked with the same secret that makes it, so it is kept as it is.
create table signing_keys (
    id         text primary key,
    owner      text not null,
    secret     blob not null,
    created_at integer not null,
    revoked_at integer
);
create index signing_keys_by_owner on signing_keys (owner);

-- What admins did.
create table audit_log (
    id     blob primary key,
    at     integer not null,
    -- Who: the key's prefix and owner; null for the command line on the database itself.
    key    text,
    owner  text not null,
    action text not null,
    target text not null
);

-- How much each owner has stored. (In PostgreSQL there are several shards; one writer needs one.)
create table usage (
    owner  text not null,
    shard  integer not null,
    images integer not null default 0,
    bytes  integer not null default 0,
    primary key (owner, shard)
);

insert into usage (owner, shard, images, bytes)
select owner, 0, count(*), sum(bytes) from images where discarded_at is null group by owner;

-- Counted here and not by whoever writes: no way in or out can forget it, not even that of the release
-- before this one.
create trigger count_new_image after insert on images when new.discarded_at is null
begin
    insert into usage (owner, shard, images, bytes) values (new.owner, 0, 1, new.bytes)
    on conflict (owner, shard) do update
    set images = images + 1, bytes = bytes + new.bytes;
end;

create trigger count_discarded_image after update of discarded_at on images
when old.discarded_at is null and new.discarded_at is not null
begin
    insert into usage (owner, shard, images, bytes) values (old.owner, 0, -1, -old.bytes)
    on conflict (owner, shard) do update
    set images = images - 1, bytes = bytes - old.bytes;
end;
