//! The format of messages. Kind and lane follow from the queue, and are not in the message. The trace context is
//! in the header `traceparent`, where tracing tools expect it.

use std::cmp::Ordering;

use lapin::{
    BasicProperties,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable},
};
use safelight_domain::JobNotice;
use safelight_domain::{JobId, TraceContext};
use safelight_queue::{Queue, UnknownQueue};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;
const PERSISTENT: u8 = 2;

/// `{"v":1,"job":"0193…","generation":0}`
#[derive(Serialize, Deserialize)]
struct Body {
    v: u32,
    job: JobId,
    generation: u32,
}

/// The part of the body that all versions have in common, also future ones.
#[derive(Deserialize)]
struct Head {
    v: u32,
    job: JobId,
}

/// A message as far as this release understands it.
#[derive(Debug, PartialEq)]
pub(super) struct Decoded {
    pub notice: JobNotice,
    /// Whether the message is fully understood. From a newer release only the job is understood, which suffices to
    /// claim it: the store decides whether this release may run it.
    pub whole: bool,
}

/// A message that cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum Undecodable {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("unknown version {0}")]
    Version(u32),
    #[error(transparent)]
    Queue(#[from] UnknownQueue),
}

/// The body and the properties of the message for a notice.
pub(super) fn encode(notice: &JobNotice) -> Result<(Vec<u8>, BasicProperties), serde_json::Error> {
    let body = Body { v: VERSION, job: notice.job, generation: notice.generation };
    let mut properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(notice.job.to_string().into())
        .with_type("notice".into())
        .with_app_id("safelight".into());
    if let Some(trace) = notice.trace {
        let mut headers = FieldTable::default();
        headers
            .insert(TraceContext::HEADER.into(), AMQPValue::LongString(trace.to_string().into()));
        properties = properties.with_headers(headers);
    }
    Ok((serde_json::to_vec(&body)?, properties))
}

/// The notice that arrived on `queue`.
pub(super) fn decode(
    queue: Queue,
    body: &[u8],
    properties: &BasicProperties,
) -> Result<Decoded, Undecodable> {
    let Head { v, job } = serde_json::from_slice(body)?;
    let (generation, whole) = match v.cmp(&VERSION) {
        Ordering::Less => return Err(Undecodable::Version(v)),
        Ordering::Equal => (serde_json::from_slice::<Body>(body)?.generation, true),
        Ordering::Greater => (0, false),
    };
    let trace = properties.headers().as_ref().and_then(trace);
    let notice = JobNotice { job, kind: queue.kind, lane: queue.lane, generation, trace };
    Ok(Decoded { notice, whole })
}

/// The trace context in the headers; `None` also if it is invalid.
fn trace(headers: &FieldTable) -> Option<TraceContext> {
    let text = match headers.inner().get(TraceContext::HEADER)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok()?,
        AMQPValue::ShortString(text) => text.as_str(),
        _ => return None,
    };
    text.parse().ok()
}

/// The broker returns a message that no queue receives, instead of dropping it with a confirm.
pub(super) fn options() -> BasicPublishOptions {
    BasicPublishOptions { mandatory: true, immediate: false }
}

#[cfg(test)]
mod tests {
    use safelight_domain::{JobKind, Lane};

    use super::*;

    const QUEUE: Queue = Queue { kind: JobKind::Write, lane: Lane::Bulk };

    fn notice(trace: Option<TraceContext>) -> JobNotice {
        JobNotice { job: JobId::new(), kind: QUEUE.kind, lane: QUEUE.lane, generation: 7, trace }
    }

    #[test]
    fn encoded_notices_decode() {
        let notice = notice(None);
        let (body, properties) = encode(&notice).expect("encodes");
        assert!(properties.headers().is_none());
        let expected = format!(r#"{{"v":1,"job":"{}","generation":7}}"#, notice.job);
        assert_eq!(String::from_utf8_lossy(&body), expected);
        let decoded = decode(QUEUE, &body, &properties).expect("decodes");
        assert_eq!(decoded, Decoded { notice, whole: true });
    }

    #[test]
    fn trace_is_sent_in_a_header_and_a_malformed_one_is_ignored() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let notice = notice(text.parse().ok());
        let (body, properties) = encode(&notice).expect("encodes");
        let carried = properties.headers().as_ref().and_then(|h| h.inner().get("traceparent"));
        assert_eq!(carried, Some(&AMQPValue::LongString(text.into())));
        let decoded = decode(QUEUE, &body, &properties).expect("decodes");
        assert_eq!(decoded, Decoded { notice, whole: true });

        for value in [
            AMQPValue::LongString("00-zz".into()),
            AMQPValue::LongString(vec![0xff; 55].into()),
            AMQPValue::LongUInt(7),
        ] {
            let mut headers = FieldTable::default();
            headers.insert("traceparent".into(), value);
            let properties = BasicProperties::default().with_headers(headers);
            let read = decode(QUEUE, &body, &properties).expect("decodes");
            assert_eq!(read.notice, JobNotice { trace: None, ..notice });
        }
    }

    #[test]
    fn foreign_messages_are_rejected() {
        for body in ["", "{}", "[1]", r#"{"v":1,"job":"x","generation":0}"#] {
            assert!(decode(QUEUE, body.as_bytes(), &BasicProperties::default()).is_err(), "{body}");
        }
        let none = format!(r#"{{"v":0,"job":"{}","generation":0}}"#, JobId::new());
        assert!(matches!(
            decode(QUEUE, none.as_bytes(), &BasicProperties::default()),
            Err(Undecodable::Version(0))
        ));
    }

    #[test]
    fn job_of_a_newer_message_is_decoded() {
        let job = JobId::new();
        let body = format!(r#"{{"v":2,"job":"{job}","generation":{{"of":"another kind"}}}}"#);
        let notice =
            JobNotice { job, kind: QUEUE.kind, lane: QUEUE.lane, generation: 0, trace: None };
        let decoded = decode(QUEUE, body.as_bytes(), &BasicProperties::default()).expect("decodes");
        assert_eq!(decoded, Decoded { notice, whole: false });
    }
}
