-- Cancelling and retrying by hand.

-- Whose task it is; empty where there are no accounts.
alter table tasks add column owner text not null default '';

-- An image whose upload was cancelled: its bytes go, if no other image shares them.
alter table images add column discarded_at integer;
-- When they were gone. The row stays, because its task's document speaks of it.
alter table images add column removed_at integer;
create index images_to_remove on images (discarded_at)
    where discarded_at is not null and removed_at is null;
