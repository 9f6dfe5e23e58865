-- Lanes that nobody has for himself.

-- Who shares a lane: an owner; of a backfill's jobs, the backfill. The relay takes from all in turn.
alter table jobs add column share text not null default '';
alter table outbox add column share text not null default '';
create index outbox_by_share on outbox (kind, lane, share, due_at, job_id);
