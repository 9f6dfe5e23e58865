//! What a message looks like. Kind and lane are not in it: they are the queue's.

use lapin::{BasicProperties, options::BasicPublishOptions};
use serde::{Deserialize, Serialize};

use crate::{
    broker::{Queue, UnknownQueue},
    domain::JobId,
    store::Doorbell,
};

const VERSION: u32 = 1;
const PERSISTENT: u8 = 2;

/// `{"v":1,"job":"0193…","generation":0}`
#[derive(Serialize, Deserialize)]
struct Body {
    v: u32,
    job: JobId,
    generation: u32,
}

/// A body that this version cannot read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Undecodable {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("unknown version {0}")]
    Version(u32),
    #[error(transparent)]
    Queue(#[from] UnknownQueue),
}

/// The body and the properties of a doorbell's message.
pub(super) fn encode(doorbell: &Doorbell) -> Result<(Vec<u8>, BasicProperties), serde_json::Error> {
    let body = Body { v: VERSION, job: doorbell.job, generation: doorbell.generation };
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(doorbell.job.to_string().into())
        .with_type("doorbell".into())
        .with_app_id("safelight".into());
    Ok((serde_json::to_vec(&body)?, properties))
}

/// The doorbell that arrived on `queue`.
pub(super) fn decode(queue: Queue, body: &[u8]) -> Result<Doorbell, Undecodable> {
    let Body { v, job, generation } = serde_json::from_slice(body)?;
    if v != VERSION {
        return Err(Undecodable::Version(v));
    }
    Ok(Doorbell { job, kind: queue.kind, lane: queue.lane, generation })
}

/// A message that no queue takes comes back, rather than being dropped with a confirm.
pub(super) fn options() -> BasicPublishOptions {
    BasicPublishOptions { mandatory: true, immediate: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{JobKind, Lane};

    const QUEUE: Queue = Queue { kind: JobKind::Write, lane: Lane::Bulk };

    #[test]
    fn what_is_encoded_decodes() {
        let doorbell =
            Doorbell { job: JobId::new(), kind: QUEUE.kind, lane: QUEUE.lane, generation: 7 };
        let (body, _) = encode(&doorbell).expect("encodes");
        let expected = format!(r#"{{"v":1,"job":"{}","generation":7}}"#, doorbell.job);
        assert_eq!(String::from_utf8_lossy(&body), expected);
        assert_eq!(decode(QUEUE, &body).expect("decodes"), doorbell);
    }

    #[test]
    fn what_is_not_ours_is_told() {
        for body in ["", "{}", "[1]", r#"{"v":1,"job":"x","generation":0}"#] {
            assert!(decode(QUEUE, body.as_bytes()).is_err(), "{body}");
        }
        let later = format!(r#"{{"v":2,"job":"{}","generation":0}}"#, JobId::new());
        assert!(matches!(decode(QUEUE, later.as_bytes()), Err(Undecodable::Version(2))));
    }
}
