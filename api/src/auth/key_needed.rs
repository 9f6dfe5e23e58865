//! Why a request without a key needs one.

use axum::http::{HeaderName, HeaderValue, header};

use super::sockets::Stranger;
use crate::http::problem::{Problem, ProblemCode};

/// Why a request needs a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyNeeded {
    /// There are keys, so every request needs one.
    KeysExist,
    /// The server is not for this machine alone.
    Public,
    /// It came through a proxy, which added this header.
    Forwarded(HeaderName),
    /// A page of another origin sends it.
    OtherPage,
    /// It asks for a machine of another name.
    OtherName,
    /// The program that sends it is not the user's own.
    Stranger(Stranger),
}

impl From<KeyNeeded> for Problem {
    fn from(why: KeyNeeded) -> Self {
        let Some(reason) = reason(&why) else { return key_missing() };
        let hint = format!(
            "there are no keys yet, so this server answers the programs of the user who runs it, and {reason}; send \
             `Authorization: Bearer` with the content of `local.key` in its data directory, or create keys with \
             `safelight keys create`"
        );
        // Commands on the same machine read it.
        key_missing().hint(hint).with("local_key", true)
    }
}

/// What distinguishes the request from those that need no key; `None` if none does without.
fn reason(why: &KeyNeeded) -> Option<String> {
    Some(match why {
        KeyNeeded::KeysExist | KeyNeeded::Public => return None,
        KeyNeeded::Forwarded(name) => {
            format!("the header `{name}` shows that it came through a proxy")
        }
        KeyNeeded::OtherPage => "a web page of another origin sent this".to_owned(),
        KeyNeeded::OtherName => "this was not sent to `localhost` or a loopback address".to_owned(),
        KeyNeeded::Stranger(Stranger::OtherUser(user)) => {
            format!("a program of another user (uid {user}) sent this, as a proxy does")
        }
        KeyNeeded::Stranger(Stranger::Server(name)) => {
            format!(
                "the program that sent this (`{name}`) accepts connections itself, as a proxy does"
            )
        }
        KeyNeeded::Stranger(Stranger::Unseen) => {
            "the program that sent this is hidden, as in another container".to_owned()
        }
        KeyNeeded::Stranger(Stranger::Unknown) => {
            "the system does not say which user sent this".to_owned()
        }
    })
}

/// The request needs a key.
pub fn key_missing() -> Problem {
    challenge(Problem::new(ProblemCode::KeyMissing, "This needs a key."), "")
        .hint("send `Authorization: Bearer sl_…`; `safelight keys create` makes a key")
}

/// Adds the challenge, which every 401 has (RFC 9110, section 11.6.1), with the `error` as in RFC 6750,
/// section 3: none for a request that presents no key.
pub(super) fn challenge(problem: Problem, error: &str) -> Problem {
    let challenge = HeaderValue::try_from(format!("Bearer realm=\"safelight\"{error}"));
    match challenge {
        Ok(challenge) => problem.header(header::WWW_AUTHENTICATE, challenge),
        Err(_) => problem,
    }
}
