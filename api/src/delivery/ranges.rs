//! Parts of an object (RFC 9110, section 14).

use std::ops::Range;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, header},
};
use futures::{StreamExt, stream};
use http_range_header::RangeUnsatisfiableError;
use safelight_domain::ImageFormat;
use uuid::Uuid;

use super::source::OpenObject;

/// Which bytes a client gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All.
    Whole,
    /// One part.
    One(Range<u64>),
    /// Several, in the order asked for.
    Several(Vec<Range<u64>>),
    /// None of the ranges exists.
    Nothing,
}

impl Wanted {
    /// The part of an object of `bytes` bytes that the request asks for. A `Range` that cannot be parsed, or
    /// asks for more than the whole, is ignored, as the RFC allows.
    pub fn of(headers: &HeaderMap, bytes: u64) -> Self {
        let mut values = headers.get_all(header::RANGE).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return Self::Whole };
        let Ok(text) = value.to_str() else { return Self::Whole };
        let parsed = http_range_header::parse_range_header(text);
        let spans: Vec<Range<u64>> = match parsed.and_then(|ranges| ranges.validate(bytes)) {
            Ok(ranges) => ranges.iter().map(|range| *range.start()..range.end() + 1).collect(),
            Err(RangeUnsatisfiableError::Unsatisfiable) => return Self::Nothing,
            Err(_) => return Self::Whole,
        };
        match spans.as_slice() {
            [] => Self::Whole,
            [one] => Self::One(one.clone()),
            _ if total(&spans) >= bytes => Self::Whole,
            _ => Self::Several(spans),
        }
    }

    /// The span of an object of `bytes` bytes to fetch. Several parts are cut out of the whole: one read of the
    /// store rather than one for each.
    pub fn fetched(&self, bytes: u64) -> Range<u64> {
        match self {
            Self::Whole | Self::Several(_) => 0..bytes,
            Self::One(span) => span.clone(),
            Self::Nothing => 0..0,
        }
    }
}

fn total(spans: &[Range<u64>]) -> u64 {
    spans.iter().map(|span| span.end - span.start).sum()
}

/// The value of `Content-Range` for a part.
pub fn content_range(span: &Range<u64>, bytes: u64) -> String {
    format!("bytes {}-{}/{bytes}", span.start, span.end - 1)
}

/// A response of several parts.
pub struct MultipartRanges {
    /// Its media type, with the boundary.
    pub content_type: Option<HeaderValue>,
    /// Its size.
    pub bytes: u64,
    /// The body itself.
    pub body: Body,
}

/// The parts as `multipart/byteranges`, in the order asked for.
pub fn multipart(
    object: &OpenObject,
    spans: &[Range<u64>],
    bytes: u64,
    format: ImageFormat,
) -> MultipartRanges {
    let boundary = Uuid::new_v4().simple().to_string();
    let part_head = |span: &Range<u64>| {
        format!(
            "\r\n--{boundary}\r\nContent-Type: {}\r\nContent-Range: {}\r\n\r\n",
            format.media_type(),
            content_range(span, bytes)
        )
    };
    let end = format!("\r\n--{boundary}--\r\n");
    let heads: Vec<String> = spans.iter().map(part_head).collect();
    let framing = heads.iter().map(String::len).sum::<usize>() + end.len();
    let parts = spans
        .iter()
        .zip(heads)
        .flat_map(|(span, head)| [Body::from(head), object.body(span.clone())]);
    let pieces: Vec<Body> = parts.chain([Body::from(end)]).collect();
    let body = Body::from_stream(stream::iter(pieces).flat_map(Body::into_data_stream));
    let content_type = format!("multipart/byteranges; boundary={boundary}");
    MultipartRanges {
        content_type: HeaderValue::from_str(&content_type).ok(),
        bytes: total(spans) + framing as u64,
        body,
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn wanted(range: &'static str) -> Wanted {
        let headers = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(range))]);
        Wanted::of(&headers, 1000)
    }

    #[test]
    fn ranges_are_parsed_as_the_rfc_says() {
        let cases = [
            ("bytes=0-99", Wanted::One(0..100)),
            ("bytes=900-", Wanted::One(900..1000)),
            ("bytes=-1", Wanted::One(999..1000)),
            ("bytes=-5000", Wanted::One(0..1000)),
            ("bytes=990-5000", Wanted::One(990..1000)),
            ("bytes=1000-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=1000-1001,2000-", Wanted::Nothing),
            ("bytes=0-0,5000-", Wanted::One(0..1)),
            ("bytes=500-599, 0-9", Wanted::Several(vec![500..600, 0..10])),
            ("bytes=0-900,100-999", Wanted::Whole),
            ("bytes=0-9,5-14,8-20,9-30", Wanted::Whole),
            ("bytes=9-5", Wanted::Whole),
            ("bytes=x-y", Wanted::Whole),
            ("lines=0-9", Wanted::Whole),
            ("bytes=18446744073709551616-", Wanted::Nothing),
        ];
        for (range, expected) in cases {
            assert_eq!(wanted(range), expected, "{range}");
        }
        let many = format!("bytes={}", vec!["0-0"; 5000].join(","));
        let many =
            HeaderMap::from_iter([(header::RANGE, HeaderValue::from_str(&many).expect("a value"))]);
        assert_eq!(Wanted::of(&many, 1000), Wanted::Whole);
    }

    #[tokio::test]
    async fn multipart_ranges_are_framed_and_counted() {
        let content: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let object = OpenObject::Whole(content.clone().into());
        let MultipartRanges { content_type, bytes, body } =
            multipart(&object, &[500..600, 3..4], 1000, ImageFormat::Png);
        let body = body.collect().await.expect("bytes").to_bytes();
        assert_eq!(body.len() as u64, bytes);
        let content_type = content_type.expect("a type");
        let boundary = content_type.to_str().expect("text").rsplit('=').next().expect("a boundary");
        let text = String::from_utf8_lossy(&body);
        let part_head = |range: &str| {
            format!(
                "\r\n--{boundary}\r\nContent-Type: image/png\r\nContent-Range: bytes {range}/1000\r\n\r\n"
            )
        };
        assert!(text.starts_with(&part_head("500-599")), "{text}");
        assert!(text.contains(&part_head("3-3")), "{text}");
        assert!(text.ends_with(&format!("\r\n--{boundary}--\r\n")), "{text}");
        assert!(body.windows(100).any(|window| *window == content[500..600]));
    }
}
