//! Log lines as flat JSON objects. The fields of an event and of its spans are on the same level, so that log
//! queries can use `task`, `job` or `trace_id` without knowing the spans.
//!
//! ```json
//! {"timestamp":"2026-…Z","level":"WARN","target":"safelight_workers::retry_policy",
//!  "message":"the attempt failed","task":"0193…","job":"0193…","attempt":1,"kind":"write",
//!  "failure":"…","trace_id":"4bf9…"}
//! ```

use std::fmt;

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormattedFields,
        format::{JsonFields, Writer},
    },
    registry::{LookupSpan, Scope},
};

/// Formats an event as a flat JSON object. Of several fields with the same name the innermost is used: that of the
/// event before that of its span, and that of a span before that of its parent.
pub(super) struct FlatJson;

impl<S> FormatEvent<S, JsonFields> for FlatJson
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Map::new();
        for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<JsonFields>>();
            if let Some(Ok(Value::Object(fields))) = fields.map(|f| serde_json::from_str(f)) {
                line.extend(fields);
            }
        }
        event.record(&mut Fields(&mut line));
        let (time, meta) = (Utc::now(), event.metadata());
        for (key, value) in [
            ("timestamp", time.to_rfc3339_opts(SecondsFormat::Micros, true)),
            ("level", meta.level().to_string()),
            ("target", meta.target().to_owned()),
        ] {
            line.insert(key.to_owned(), Value::String(value));
        }
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// Collects an event's fields.
struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn insert(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex, PoisonError},
    };

    use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Sink {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn log_line_is_one_flat_json_object() {
        let sink = Sink::default();
        let lines = tracing_subscriber::fmt::layer()
            .fmt_fields(JsonFields::new())
            .event_format(FlatJson)
            .with_writer(sink.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            let outer = tracing::info_span!("request", kind = "outer", path = "/v1/\"x\"");
            let _outer = outer.enter();
            let inner = tracing::info_span!(
                "job", task = %"t-1", attempt = 2, kind = "write", trace_id = tracing::field::Empty
            );
            inner.record("trace_id", "4bf9");
            let _inner = inner.enter();
            let io = io::Error::other("disk");
            tracing::warn!(
                level = "mine",
                ok = true,
                error = &io as &dyn std::error::Error,
                "oh\nno"
            );
        });
        let bytes = sink.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text = String::from_utf8(bytes).expect("UTF-8");
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        let mut line: Map<String, Value> = serde_json::from_str(&text).expect("JSON");
        assert!(line.remove("timestamp").is_some_and(|time| time.is_string()));
        let expected = serde_json::json!({
            "level": "WARN", "target": module_path!(),
            "message": "oh\nno", "ok": true, "error": "disk", "path": "/v1/\"x\"", "task": "t-1",
            "attempt": 2, "kind": "write", "trace_id": "4bf9",
        });
        assert_eq!(Value::Object(line), expected);
    }
}
