//! What a successful attempt writes to the database, one function for each effect.

use safelight_domain::{ImageFacts, ImageId, Placeholder, Rendition};
use safelight_store::{Effect, StoreError};
use sqlx::{SqliteConnection, types::Json};

/// Records an effect on an image.
pub async fn apply(
    conn: &mut SqliteConnection,
    now: i64,
    image: ImageId,
    effect: &Effect,
) -> Result<(), StoreError> {
    match effect {
        Effect::StoredBlob(facts) => stored_blob(conn, image, facts, now).await,
        Effect::UpsertRenditions(made) => upsert_renditions(conn, image, made, now).await,
        Effect::Placeholder(new) => placeholder(conn, image, new, now).await,
        Effect::ForgetRenditions(gone) => forget_renditions(conn, image, gone).await,
        Effect::ForgetImage { proxies } => forget_image(conn, image, *proxies, now).await,
        // It is a column of the job, which is settled before.
        Effect::Note(_) => Ok(()),
    }
}

/// The bytes are stored as a blob: see [`Effect::StoredBlob`].
async fn stored_blob(
    conn: &mut SqliteConnection,
    image: ImageId,
    facts: &ImageFacts,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "update images
         set format = $2, width = $3, height = $4, orientation = $5, taken_at = $6,
             latitude = $7, longitude = $8, stored_at = $9
         where id = $1",
    )
    .bind(image)
    .bind(facts.format.as_str())
    .bind(facts.width)
    .bind(facts.height)
    .bind(facts.orientation)
    .bind(facts.taken_at)
    .bind(facts.gps.map(|gps| gps.latitude))
    .bind(facts.gps.map(|gps| gps.longitude))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// See [`Effect::UpsertRenditions`].
async fn upsert_renditions(
    conn: &mut SqliteConnection,
    image: ImageId,
    renditions: &[Rendition],
    now: i64,
) -> Result<(), StoreError> {
    if renditions.is_empty() {
        return Ok(());
    }
    let made: Vec<_> = renditions
        .iter()
        .map(|one| {
            let format = one.format.as_str();
            let size = (one.width, one.height, one.bytes);
            (&one.preset, &one.fingerprint, format, size, one.sha256.to_string())
        })
        .collect();
    sqlx::query(
        "insert into renditions (sha256, preset, fingerprint, format, width, height, bytes,
                                 rendition_sha256, created_at)
         select i.sha256, m.value ->> 0, m.value ->> 1, m.value ->> 2, m.value ->> '$[3][0]',
                m.value ->> '$[3][1]', m.value ->> '$[3][2]', unhex(m.value ->> 4), $3
         from images i join json_each($2) m
         where i.id = $1
         on conflict (sha256, preset, fingerprint, format) do update
         set width = excluded.width, height = excluded.height, bytes = excluded.bytes,
             rendition_sha256 = excluded.rendition_sha256,
             created_at = case
                 when renditions.rendition_sha256 = excluded.rendition_sha256
                      then renditions.created_at
                 else excluded.created_at end",
    )
    .bind(image)
    .bind(Json(made))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// See [`Effect::ForgetRenditions`].
async fn forget_renditions(
    conn: &mut SqliteConnection,
    image: ImageId,
    renditions: &[Rendition],
) -> Result<(), StoreError> {
    for rendition in renditions {
        sqlx::query(
            "delete from renditions
             where sha256 = (select sha256 from images where id = $1) and preset = $2
               and fingerprint = $3 and format = $4",
        )
        .bind(image)
        .bind(&rendition.preset)
        .bind(&rendition.fingerprint)
        .bind(rendition.format.as_str())
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

/// See [`Effect::Placeholder`].
async fn placeholder(
    conn: &mut SqliteConnection,
    image: ImageId,
    placeholder: &Placeholder,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into placeholders (sha256, thumbhash, dominant_color, created_at)
         select sha256, $2, $3, $4 from images where id = $1
         on conflict (sha256) do update
         set thumbhash = excluded.thumbhash, dominant_color = excluded.dominant_color",
    )
    .bind(image)
    .bind(&placeholder.thumbhash)
    .bind(placeholder.css_color())
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// See [`Effect::ForgetImage`]: nothing of the picture is kept, not even the hash of its bytes.
async fn forget_image(
    conn: &mut SqliteConnection,
    image: ImageId,
    proxies: u32,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "update images set sha256 = zeroblob(32), removed_at = $2 where id = $1;

         update deletions set proxies = $3, removal = null where image_id = $1;",
    )
    .bind(image)
    .bind(now)
    .bind(proxies)
    .execute(conn)
    .await?;
    Ok(())
}
