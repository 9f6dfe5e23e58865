-- What to show of a picture until its renditions are loaded.

-- Placeholders belong to the blob, as renditions do, so that equal uploads share them.
create table placeholders (
    sha256         blob primary key,
    -- 5 to 25 bytes, see evanw/thumbhash.
    thumbhash      blob not null,
    -- '#rrggbb', sRGB.
    dominant_color text not null,
    created_at     integer not null
);
