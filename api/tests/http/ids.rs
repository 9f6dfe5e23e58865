//! What ids that everybody is told reveal about those of images.

use uuid::Uuid;

use crate::app::{TestApp, fake_png, image_id};

/// The random bits of an id of version 7 that its last 32 bits do not hold.
fn upper_bits(id: Uuid) -> u128 {
    let id = id.as_u128();
    (id >> 64 & 0xfff) << 30 | id >> 32 & (u128::MAX >> 98)
}

/// Every response without a key tells a request id. If it came from the generator of image ids, a watcher would know
/// 42 of the 74 bits that protect a public image.
#[tokio::test]
async fn request_ids_tell_nothing_about_ids_of_images() {
    let app = TestApp::new().await;
    let (mut seen, mut images) = (Vec::new(), Vec::new());
    for seed in 0..20 {
        for _ in 0..20 {
            let answer = app.get("/nothing").await;
            let id: Uuid = answer.header("x-request-id").parse().expect("an id");
            assert_eq!(id.get_version_num(), 4, "{id} tells when it was made, or how many were");
            seen.push(upper_bits(id));
        }
        images.push(image_id(&app.upload(fake_png(500, seed)).await).0);
    }
    // By chance, one of 20 images is that near to one of 400 ids in one of a million runs.
    let is_near = |one: &u128, other: u128| one.abs_diff(other) < 1 << 8;
    for image in images {
        assert_eq!(image.get_version_num(), 7);
        assert!(!seen.iter().any(|id| is_near(id, upper_bits(image))), "{image} can be guessed");
    }
}
