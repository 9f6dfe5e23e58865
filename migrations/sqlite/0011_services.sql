-- What the background services of a worker's process did last: an array of objects, one for each service.
-- Workers of earlier releases do not send it.
alter table workers add column services text not null default '[]';
