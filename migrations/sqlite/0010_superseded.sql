-- A failed job after which another of its kind has succeeded for the same image: its failure says nothing
-- about the image any more, also when the one that succeeded is forgotten.
alter table jobs add column superseded integer not null default 0;
