//! The protocol on the pipes. A message is the length of its head (4 bytes, little-endian), the head as JSON,
//! and as many bytes as the head announces. Both sides reject lengths beyond what they can expect.

use std::io::{self, Read, Write};

use bytes::Bytes;
use safelight_domain::{Failure, ImageFacts, Placeholder, Presets, Rendition};
use safelight_imaging::{Limits, Rendered, Renditions};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    limits::DecoderLimits,
    plausible::{self, bounded, invalid},
    request::{Request, Response},
};

/// Sent by a decoder between request and response: it has received the picture and starts to decode it.
pub(super) const STARTED: u8 = b'!';

/// The maximum length of a head in bytes, enough for thousands of presets.
const MAX_HEAD: usize = 1 << 20;

/// Memory for the bytes of renditions before any of them have arrived.
const FIRST_BYTES: usize = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct RequestHead {
    request: Request,
    /// The picture's length.
    bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum ResponseHead {
    Facts(ImageFacts),
    /// The bytes of the renditions follow in this order.
    Renditions(Vec<Rendition>, Placeholder),
    Failed(Failure),
}

/// Sends a request to a decoder.
pub(super) async fn write_request(
    to: &mut (impl AsyncWrite + Unpin),
    request: &Request,
    picture: &[u8],
) -> io::Result<()> {
    let head = RequestHead { request: request.clone(), bytes: picture.len() as u64 };
    to.write_all(&head_bytes(&head)?).await?;
    to.write_all(picture).await?;
    to.flush().await
}

/// Receives a request in a decoder; `None` at the end of the input.
pub(super) fn read_request(
    from: &mut impl Read,
    limits: DecoderLimits,
) -> io::Result<Option<(Request, Vec<u8>)>> {
    let mut length = [0; 4];
    if from.read(&mut length[..1])? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[1..])?;
    let mut head = vec![0; head_length(length)?];
    from.read_exact(&mut head)?;
    let RequestHead { request, bytes } = parsed(&head)?;
    let mut picture = vec![0; bounded(bytes, limits.memory_bytes)?];
    from.read_exact(&mut picture)?;
    Ok(Some((request, picture)))
}

/// Sends a response to the worker.
pub(super) fn write_response(
    to: &mut impl Write,
    result: Result<Response, Failure>,
) -> io::Result<()> {
    let (head, bodies) = match result {
        Ok(Response::Facts(facts)) => (ResponseHead::Facts(facts), Vec::new()),
        Ok(Response::Renditions(Renditions { renditions, placeholder })) => {
            let parts =
                renditions.into_iter().map(|Rendered { rendition, data }| (rendition, data));
            let (renditions, bodies): (_, Vec<Bytes>) = parts.unzip();
            (ResponseHead::Renditions(renditions, placeholder), bodies)
        }
        Err(failure) => (ResponseHead::Failed(failure), Vec::new()),
    };
    to.write_all(&head_bytes(&head)?)?;
    bodies.iter().try_for_each(|body| to.write_all(body))
}

/// Receives the response to `request` in the worker.
pub(super) async fn read_response(
    from: &mut (impl AsyncRead + Unpin),
    request: &Request,
) -> io::Result<Result<Response, Failure>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await?;
    let mut head = vec![0; head_length(length)?];
    from.read_exact(&mut head).await?;
    Ok(match (parsed(&head)?, request) {
        (ResponseHead::Failed(failure), _) => Err(plausible::failure(failure)?),
        (ResponseHead::Facts(facts), Request::Inspect { limits }) => {
            Ok(Response::Facts(plausible::facts(facts, *limits)?))
        }
        (
            ResponseHead::Renditions(renditions, placeholder),
            Request::Render { presets, limits },
        ) => {
            let renditions = read_bodies(from, renditions, presets, *limits).await?;
            Ok(Response::Renditions(Renditions { renditions, placeholder }))
        }
        _ => return Err(invalid("a response to another kind of request")),
    })
}

/// Reads all renditions into one buffer, which they share. It grows with what arrives: an announcement alone costs
/// no memory.
async fn read_bodies(
    from: &mut (impl AsyncRead + Unpin),
    renditions: Vec<Rendition>,
    presets: &Presets,
    limits: Limits,
) -> io::Result<Vec<Rendered>> {
    let total = plausible::total_bytes(&renditions, presets, limits)?;
    let mut bodies = Vec::with_capacity(total.min(FIRST_BYTES));
    if from.take(total as u64).read_to_end(&mut bodies).await? < total {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut bodies = Bytes::from(bodies);
    let with_data = |rendition: Rendition| {
        // Checked above, so it fits.
        let size = usize::try_from(rendition.bytes).unwrap_or(usize::MAX);
        Rendered { data: bodies.split_to(size.min(bodies.len())), rendition }
    };
    let rendered: Vec<Rendered> = renditions.into_iter().map(with_data).collect();
    rendered.iter().try_for_each(plausible::data)?;
    Ok(rendered)
}

fn head_bytes(head: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, head)?;
    let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX).to_le_bytes();
    head_length(length)?;
    bytes[..4].copy_from_slice(&length);
    Ok(bytes)
}

fn head_length(length: [u8; 4]) -> io::Result<usize> {
    bounded(u32::from_le_bytes(length).into(), MAX_HEAD as u64)
}

fn parsed<T: DeserializeOwned>(head: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(head)?)
}

#[cfg(test)]
mod tests {
    use safelight_domain::{ContentHash, ErrorCode, ImageFormat, Preset, Size};

    use super::*;

    const DECODER: DecoderLimits =
        DecoderLimits { cpu_seconds: 1, memory_bytes: 1000, sandbox: false, niceness: 0 };
    const LIMITS: Limits = Limits {
        max_pixels: 7,
        max_side: 6,
        max_frames: 5,
        max_animation_pixels: 8,
        max_memory: 3 << 20,
        heic: true,
    };

    fn render() -> Request {
        let preset = |size| Preset::new(Size::square(size));
        let presets = [("a".to_owned(), preset(10)), ("b".to_owned(), preset(20))].into();
        Request::Render { presets, limits: LIMITS }
    }

    /// A decoder's response to [`render`].
    fn renditions() -> Renditions {
        let Request::Render { presets, .. } = render() else { unreachable!() };
        let rendered = |(name, preset): (String, Preset)| {
            let data = Bytes::from([&b"\xff\xd8\xff"[..], name.repeat(2).as_bytes()].concat());
            let rendition = Rendition {
                fingerprint: preset.fingerprint(),
                preset: name,
                format: ImageFormat::Jpeg,
                width: 3,
                height: 2,
                bytes: 5,
                sha256: ContentHash::of(&data),
                made_at: None,
            };
            Rendered { rendition, data }
        };
        let renditions = presets.into_iter().map(rendered).collect();
        let placeholder = Placeholder { thumbhash: vec![1; 7], dominant_color: [1, 2, 3] };
        Renditions { renditions, placeholder }
    }

    fn encoded(result: Result<Response, Failure>) -> Vec<u8> {
        let mut pipe = Vec::new();
        write_response(&mut pipe, result).expect("write");
        pipe
    }

    #[tokio::test]
    async fn requests_survive_round_trip() {
        let mut pipe = Vec::new();
        write_request(&mut pipe, &render(), b"a picture").await.expect("write");
        write_request(&mut pipe, &Request::Inspect { limits: LIMITS }, b"").await.expect("write");
        let mut pipe = pipe.as_slice();
        let (request, picture) = read_request(&mut pipe, DECODER).expect("read").expect("one");
        assert_eq!((request, picture.as_slice()), (render(), &b"a picture"[..]));
        let (request, picture) = read_request(&mut pipe, DECODER).expect("read").expect("two");
        assert_eq!((request, picture), (Request::Inspect { limits: LIMITS }, Vec::new()));
        assert!(read_request(&mut pipe, DECODER).expect("the end").is_none());
    }

    #[tokio::test]
    async fn responses_survive_round_trip() {
        let pipe = encoded(Ok(Response::Renditions(renditions())));
        let response = read_response(&mut pipe.as_slice(), &render()).await.expect("read");
        let Ok(Response::Renditions(arrived)) = response else { panic!("{response:?}") };
        assert_eq!(arrived.placeholder, renditions().placeholder);
        for (arrived, sent) in arrived.renditions.iter().zip(renditions().renditions) {
            assert_eq!((&arrived.rendition, &arrived.data), (&sent.rendition, &sent.data));
        }
        let failure = Failure::new(ErrorCode::CorruptImage, "truncated");
        let pipe = encoded(Err(failure.clone()));
        let response = read_response(&mut pipe.as_slice(), &render()).await.expect("read");
        assert_eq!(response.expect_err("a failure"), failure);
    }

    #[tokio::test]
    async fn responses_that_do_not_match_the_request_are_rejected() {
        let mut too_long = renditions();
        too_long.renditions[0].rendition.bytes = 2 << 20;
        let mut other_preset = renditions();
        other_preset.renditions[1].rendition.preset = "c".to_owned();
        let mut other_fingerprint = renditions();
        other_fingerprint.renditions[0].rendition.fingerprint = String::new();
        let none = Renditions { renditions: Vec::new(), ..renditions() };
        let mut other_format = renditions();
        other_format.renditions[0].rendition.format = ImageFormat::Png;
        let mut duplicate = renditions();
        duplicate.renditions.push(duplicate.renditions[0].clone());
        for wrong in [too_long, other_format, duplicate, other_preset, other_fingerprint, none] {
            let pipe = encoded(Ok(Response::Renditions(wrong)));
            let error = read_response(&mut pipe.as_slice(), &render()).await.expect_err("rejected");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let pipe = encoded(Ok(Response::Renditions(renditions())));
        let other = Request::Inspect { limits: LIMITS };
        assert!(read_response(&mut pipe.as_slice(), &other).await.is_err());
        for garbage in [&b"\xFF\xFF\xFF\xFF and more"[..], b"\x02\0\0\0{]", b"\x02\0"] {
            assert!(read_response(&mut &garbage[..], &render()).await.is_err(), "{garbage:?}");
        }
    }

    #[tokio::test]
    async fn failure_of_a_hijacked_decoder_is_cleaned_before_it_is_stored() {
        let shout = format!("\u{1b}[2J\u{202e}{}", "x".repeat(1 << 19));
        let pipe = encoded(Err(Failure::new(ErrorCode::CorruptImage, shout)));
        let response = read_response(&mut pipe.as_slice(), &render()).await.expect("read");
        let message = response.expect_err("a failure").message;
        assert!(message.chars().count() <= safelight_domain::MAX_MESSAGE_CHARS, "{message}");
        assert!(!message.contains(['\u{1b}', '\u{202e}']), "{message:?}");
    }

    #[tokio::test]
    async fn announced_bytes_that_do_not_arrive_are_an_error() {
        let mut cut = encoded(Ok(Response::Renditions(renditions())));
        cut.pop();
        let error = read_response(&mut cut.as_slice(), &render()).await.expect_err("cut");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn decoder_rejects_requests_beyond_its_memory() {
        let mut pipe = Vec::new();
        write_request(&mut pipe, &render(), &[0; 1001]).await.expect("write");
        let error = read_request(&mut pipe.as_slice(), DECODER).expect_err("rejected");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(read_request(&mut &b"\xFF\xFF\xFF\x7F"[..], DECODER).is_err());
    }
}
