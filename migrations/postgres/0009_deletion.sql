-- Deletion: a task that removes an image for good and whose document is the receipt.

-- When somebody had it deleted; its bytes are then the business of a job, not of the janitor. From that
-- time on the row tells nothing of the picture, and once the bytes are gone sha256 is 32 zeros.
alter table images add column deleted_at timestamptz;

create table deletions (
    -- Forgotten with its task.
    task_id  uuid primary key references tasks (id) on delete cascade,
    image_id uuid not null unique references images (id),
    -- What the image had, for whoever asked: Receipt.
    receipt  jsonb not null,
    -- What the job must know however much it has removed before: Removal. Null once it is done.
    removal  jsonb,
    -- Caching proxies that have confirmed; null until it is done.
    proxies  integer
);

-- Few among many uploads.
create index tasks_of_deletions on tasks (id) where kind = 'delete';
