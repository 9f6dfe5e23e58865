//! Which of a preset's formats a client gets (RFC 9110, section 12.5.1).

use std::sync::Arc;

use axum::http::{HeaderMap, header};
use safelight_domain::ImageFormat;

use super::image_view::Representation;

/// Weights are thousandths.
type Weight = u16;

/// The best of `offers` (the base first) for a client that sent `headers`: of those with the
/// highest weight, the smallest. The base if the client states no preference or accepts none.
///
/// WebP and AVIF are sent only to clients that name them: `*/*` is also sent by programs that do
/// not support them.
pub fn choose<'a>(
    offers: &'a [Arc<Representation>],
    headers: &HeaderMap,
) -> Option<&'a Arc<Representation>> {
    let formats = offers.iter().map(|offer| (offer.format, offer.object.bytes));
    offers.get(best(formats, headers))
}

/// The position of the best format, given with its size in bytes.
fn best(offers: impl ExactSizeIterator<Item = (ImageFormat, u64)>, headers: &HeaderMap) -> usize {
    if offers.len() < 2 {
        return 0;
    }
    let accepted: Vec<(String, Weight)> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(range)
        .collect();
    let weigh = |(at, (format, bytes)): (usize, (ImageFormat, u64))| {
        let weight = weight(format, &accepted);
        (weight > 0).then_some((weight, std::cmp::Reverse(bytes), at))
    };
    let best = offers.enumerate().filter_map(weigh).max();
    best.map_or(0, |(_, _, at)| at)
}

/// A media range and its weight.
fn range(text: &str) -> Option<(String, Weight)> {
    let mut parts = text.split(';');
    let name = parts.next()?.trim().to_ascii_lowercase();
    let quality = parts.find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        key.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().ok())?
    });
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 1000
    let weight = (quality.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0).round() as Weight;
    (!name.is_empty()).then_some((name, weight))
}

/// The weight that the most specific range gives a format; 0 if none fits.
fn weight(format: ImageFormat, accepted: &[(String, Weight)]) -> Weight {
    let of =
        |name: &str| accepted.iter().find(|(range, _)| range == name).map(|(_, weight)| *weight);
    let by_name = of(format.media_type());
    let modern = matches!(format, ImageFormat::Webp | ImageFormat::Avif);
    let by_wildcard = || if modern { None } else { of("image/*").or_else(|| of("*/*")) };
    by_name.or_else(by_wildcard).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn clients_get_the_smallest_format_that_they_name() {
        const JPEG: usize = 0;
        const WEBP: usize = 1;
        const AVIF: usize = 2;
        let offers = [(ImageFormat::Jpeg, 900), (ImageFormat::Webp, 700), (ImageFormat::Avif, 500)];
        let cases = [
            ("", JPEG),
            ("*/*", JPEG),
            ("image/*", JPEG),
            ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", AVIF),
            ("image/webp,*/*;q=0.8", WEBP),
            ("image/webp,*/*", WEBP),
            ("image/avif;q=0.5, image/webp;q=0.9, image/jpeg;q=0.1", WEBP),
            ("image/avif;q=0, image/webp;q=0.000, */*;q=0.1", JPEG),
            ("IMAGE/WEBP", WEBP),
            ("image/png", JPEG),
            ("image/webp;q=x", WEBP),
            (",;q=1,=", JPEG),
        ];
        for (accept, at) in cases {
            let accept = HeaderValue::from_str(accept).expect("a value");
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.clone())]);
            assert_eq!(best(offers.into_iter(), &headers), at, "{accept:?}");
        }
        assert_eq!(best(offers.into_iter(), &HeaderMap::new()), JPEG);
        // A single format is always sent.
        assert_eq!(best(offers[1..2].iter().copied(), &HeaderMap::new()), 0);
        let larger = [(ImageFormat::Jpeg, 300), (ImageFormat::Webp, 700)];
        let headers = HeaderMap::from_iter([(
            header::ACCEPT,
            HeaderValue::from_static("image/webp,image/*"),
        )]);
        assert_eq!(best(larger.into_iter(), &headers), JPEG, "a larger file is no improvement");
    }
}
