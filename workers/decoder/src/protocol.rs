//! What goes through the pipes. A message is the length of its head (4 bytes, little-endian), the
//! head as JSON, and as many bytes as the head announces. Neither side believes a length that it
//! could not have asked for.

use std::io::{self, Read, Write};

use bytes::Bytes;
use safelight_domain::{Failure, ImageFacts, ImageFormat, Placeholder, Presets, Rendition};
use safelight_imaging::{Rendered, Renditions};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    DecoderLimits,
    request::{Answer, Request},
};

/// Sent by a decoder between request and answer: the picture has arrived and its turn begins.
pub(super) const BEGUN: u8 = b'!';

/// The longest head: thousands of presets.
const HEAD_MAX: usize = 1 << 20;

/// What a rendition may have beside four bytes for each pixel of its box.
const RENDITION_OVERHEAD: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct RequestHead {
    request: Request,
    /// The picture's size.
    bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum AnswerHead {
    Facts(ImageFacts),
    /// The renditions' bytes follow in this order.
    Renditions(Vec<Rendition>, Placeholder),
    Failed(Failure),
}

/// The worker sends a request.
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

/// The decoder receives a request; `None` when there are no more.
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

/// The decoder sends its answer.
pub(super) fn write_answer(to: &mut impl Write, result: Result<Answer, Failure>) -> io::Result<()> {
    let (head, bodies) = match result {
        Ok(Answer::Facts(facts)) => (AnswerHead::Facts(facts), Vec::new()),
        Ok(Answer::Renditions(Renditions { renditions, placeholder })) => {
            let parts =
                renditions.into_iter().map(|Rendered { rendition, data }| (rendition, data));
            let (renditions, bodies): (_, Vec<Bytes>) = parts.unzip();
            (AnswerHead::Renditions(renditions, placeholder), bodies)
        }
        Err(failure) => (AnswerHead::Failed(failure), Vec::new()),
    };
    to.write_all(&head_bytes(&head)?)?;
    bodies.iter().try_for_each(|body| to.write_all(body))
}

/// The worker receives the answer to `request`.
pub(super) async fn read_answer(
    from: &mut (impl AsyncRead + Unpin),
    request: &Request,
) -> io::Result<Result<Answer, Failure>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await?;
    let mut head = vec![0; head_length(length)?];
    from.read_exact(&mut head).await?;
    Ok(match (parsed(&head)?, request) {
        (AnswerHead::Failed(failure), _) => Err(failure),
        (AnswerHead::Facts(facts), Request::Inspect { .. }) => Ok(Answer::Facts(facts)),
        (AnswerHead::Renditions(renditions, placeholder), Request::Render { presets, limits }) => {
            let renditions = read_bodies(from, renditions, presets, limits.max_frames).await?;
            Ok(Answer::Renditions(Renditions { renditions, placeholder }))
        }
        _ => return Err(invalid("an answer to another question")),
    })
}

/// All in one buffer, which the renditions share.
async fn read_bodies(
    from: &mut (impl AsyncRead + Unpin),
    renditions: Vec<Rendition>,
    presets: &Presets,
    max_frames: u32,
) -> io::Result<Vec<Rendered>> {
    for (name, preset) in presets {
        let made = renditions.iter().filter(|made| made.preset == *name).map(|made| made.format);
        let mut made: Vec<ImageFormat> = made.collect();
        let is_met = preset.formats.are_met_by(&made);
        made.sort_unstable();
        let is_twice = made.windows(2).any(|pair| pair[0] == pair[1]);
        if !is_met || is_twice || made.len() > preset.formats.len() {
            return Err(invalid("other renditions than were asked for"));
        }
    }
    let mut total = 0;
    for rendition in &renditions {
        let preset = presets
            .get(&rendition.preset)
            .filter(|preset| preset.fingerprint() == rendition.fingerprint)
            .ok_or_else(|| invalid("a rendition that was not asked for"))?;
        let pixels = u64::from(preset.size.width) * u64::from(preset.size.height);
        // Only WebP is animated.
        let frames = if rendition.format == ImageFormat::Webp { max_frames } else { 1 };
        let most = (pixels * 4).saturating_mul(frames.into()) + RENDITION_OVERHEAD;
        total += bounded(rendition.bytes, most)?;
    }
    let mut bodies = vec![0; total];
    from.read_exact(&mut bodies).await?;
    let mut bodies = Bytes::from(bodies);
    let with_data = |rendition: Rendition| {
        // Each was bounded above, so it fits.
        let size = usize::try_from(rendition.bytes).unwrap_or(usize::MAX);
        Rendered { data: bodies.split_to(size.min(bodies.len())), rendition }
    };
    Ok(renditions.into_iter().map(with_data).collect())
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
    bounded(u32::from_le_bytes(length).into(), HEAD_MAX as u64)
}

fn parsed<T: DeserializeOwned>(head: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(head)?)
}

fn bounded(length: u64, most: u64) -> io::Result<usize> {
    usize::try_from(length)
        .ok()
        .filter(|_| length <= most)
        .ok_or_else(|| invalid("a length beyond its bound"))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use safelight_domain::{ContentHash, ErrorCode, Preset, Size};
    use safelight_imaging::Limits;

    use super::*;

    const DECODER: DecoderLimits =
        DecoderLimits { cpu_seconds: 1, memory_bytes: 1000, sandbox: false, niceness: 0 };
    const LIMITS: Limits = Limits {
        max_pixels: 7,
        max_side: 6,
        max_frames: 5,
        max_animation_pixels: 4,
        max_memory: 3,
    };

    fn render() -> Request {
        let preset = |size| Preset::new(Size::square(size));
        let presets = [("a".to_owned(), preset(10)), ("b".to_owned(), preset(20))].into();
        Request::Render { presets, limits: LIMITS }
    }

    /// As a decoder would answer [`render`].
    fn renditions() -> Renditions {
        let Request::Render { presets, .. } = render() else { unreachable!() };
        let rendered = |(name, preset): (String, Preset)| {
            let data = Bytes::from(name.repeat(5));
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

    fn sent(result: Result<Answer, Failure>) -> Vec<u8> {
        let mut pipe = Vec::new();
        write_answer(&mut pipe, result).expect("write");
        pipe
    }

    #[tokio::test]
    async fn requests_arrive_as_they_were_sent() {
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
    async fn answers_arrive_as_they_were_sent() {
        let pipe = sent(Ok(Answer::Renditions(renditions())));
        let answer = read_answer(&mut pipe.as_slice(), &render()).await.expect("read");
        let Ok(Answer::Renditions(arrived)) = answer else { panic!("{answer:?}") };
        assert_eq!(arrived.placeholder, renditions().placeholder);
        for (arrived, sent) in arrived.renditions.iter().zip(renditions().renditions) {
            assert_eq!((&arrived.rendition, &arrived.data), (&sent.rendition, &sent.data));
        }
        let failure = Failure::new(ErrorCode::CorruptImage, "cut short");
        let pipe = sent(Err(failure.clone()));
        let answer = read_answer(&mut pipe.as_slice(), &render()).await.expect("read");
        assert_eq!(answer.expect_err("a failure"), failure);
    }

    #[tokio::test]
    async fn what_was_not_asked_for_is_refused() {
        let mut too_long = renditions();
        too_long.renditions[0].rendition.bytes = 10 * 10 * 4 + RENDITION_OVERHEAD + 1;
        let mut of_another_preset = renditions();
        of_another_preset.renditions[1].rendition.preset = "c".to_owned();
        let mut of_another_recipe = renditions();
        of_another_recipe.renditions[0].rendition.fingerprint = String::new();
        let none = Renditions { renditions: Vec::new(), ..renditions() };
        let mut in_another_format = renditions();
        in_another_format.renditions[0].rendition.format = ImageFormat::Png;
        let mut twice = renditions();
        twice.renditions.push(twice.renditions[0].clone());
        for wrong in
            [too_long, in_another_format, twice, of_another_preset, of_another_recipe, none]
        {
            let pipe = sent(Ok(Answer::Renditions(wrong)));
            let error = read_answer(&mut pipe.as_slice(), &render()).await.expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let pipe = sent(Ok(Answer::Renditions(renditions())));
        let other = Request::Inspect { limits: LIMITS };
        assert!(read_answer(&mut pipe.as_slice(), &other).await.is_err());
        for garbage in [&b"\xFF\xFF\xFF\xFF and so on"[..], b"\x02\0\0\0{]", b"\x02\0"] {
            assert!(read_answer(&mut &garbage[..], &render()).await.is_err(), "{garbage:?}");
        }
    }

    #[tokio::test]
    async fn a_decoder_reads_no_more_than_it_may_hold() {
        let mut pipe = Vec::new();
        write_request(&mut pipe, &render(), &[0; 1001]).await.expect("write");
        let error = read_request(&mut pipe.as_slice(), DECODER).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(read_request(&mut &b"\xFF\xFF\xFF\x7F"[..], DECODER).is_err());
    }
}
