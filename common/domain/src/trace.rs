//! Trace context in messages and rows, so that their receivers continue the trace.

use std::{fmt, str::FromStr};

/// A span of a trace by W3C Trace Context. Its text form is the header `traceparent`:
/// `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The trace; never zero.
    pub trace: [u8; 16],
    /// The span; never zero.
    pub span: [u8; 8],
    /// Bit 0: the trace is recorded.
    pub flags: u8,
}

/// The text is not a `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a W3C traceparent")]
pub struct InvalidTraceContext;

/// The length of a `traceparent` of version 00.
const LENGTH: usize = 55;

impl TraceContext {
    /// The name of the header, in requests and in messages.
    pub const HEADER: &'static str = "traceparent";

    /// Whether the trace is recorded.
    pub const fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// The trace's id in the form of logs and trace viewers.
    pub fn trace_id(&self) -> String {
        hex(&self.trace)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", hex(&self.trace), hex(&self.span), self.flags)
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTraceContext;

    /// Parses version 00, and the common part of later versions, as W3C requires.
    fn from_str(text: &str) -> Result<Self, InvalidTraceContext> {
        let bytes = text.as_bytes();
        let head = bytes.get(..LENGTH).ok_or(InvalidTraceContext)?;
        let [version] = unhex(&head[..2])?;
        let ends_well = match (version, bytes.get(LENGTH)) {
            (0xff, _) | (0, Some(_)) => false,
            (_, next) => next.is_none_or(|next| *next == b'-'),
        };
        let separated = [2, 35, 52].iter().all(|&at| head[at] == b'-');
        let context = Self {
            trace: unhex(&head[3..35])?,
            span: unhex(&head[36..52])?,
            flags: unhex::<1>(&head[53..55])?[0],
        };
        let named = context.trace != [0; 16] && context.span != [0; 8];
        if ends_well && separated && named { Ok(context) } else { Err(InvalidTraceContext) }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Parses `2 * N` lower-case hexadecimal digits.
fn unhex<const N: usize>(text: &[u8]) -> Result<[u8; N], InvalidTraceContext> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(InvalidTraceContext),
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn example_of_the_standard_is_parsed() {
        let context: TraceContext = KNOWN.parse().expect("valid");
        assert_eq!((context.trace[0], context.span[1]), (0x4b, 0xf0));
        assert!(context.is_sampled());
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.to_string(), KNOWN);
    }

    #[test]
    fn known_part_of_later_versions_is_parsed() {
        for later in [KNOWN.replacen("00", "cc", 1), KNOWN.replacen("00", "01", 1) + "-more"] {
            let context: TraceContext = later.parse().expect("valid");
            assert_eq!(context.to_string(), KNOWN);
        }
    }

    #[test]
    fn malformed_text_is_rejected() {
        let malformed = [
            String::new(),
            KNOWN[..54].to_owned(),
            format!("{KNOWN}-more"),
            format!("{KNOWN}0"),
            KNOWN.replacen("00", "01", 1) + "more",
            KNOWN.replacen("00", "ff", 1),
            KNOWN.to_uppercase(),
            KNOWN.replace('-', "_"),
            KNOWN.replace("4bf9", "4bg9"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01".to_owned(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01".to_owned(),
            KNOWN.replace("4bf92f", "4bü2f"),
        ];
        for text in malformed {
            assert_eq!(text.parse::<TraceContext>(), Err(InvalidTraceContext), "{text}");
        }
    }

    proptest! {
        #[test]
        fn formatted_text_parses_back(trace in 1_u128.., span in 1_u64.., flags: u8) {
            let context =
                TraceContext { trace: trace.to_be_bytes(), span: span.to_be_bytes(), flags };
            prop_assert_eq!(context.to_string().parse(), Ok(context));
        }

        #[test]
        fn parser_accepts_arbitrary_text_without_panic(text in "\\PC{0,80}") {
            if let Ok(context) = text.parse::<TraceContext>() {
                prop_assert!(text.contains(&context.trace_id()));
            }
        }
    }
}
