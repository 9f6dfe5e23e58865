//! Private images: who may read their bytes, and URLs that contain the permission.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::http::Uri;
use safelight_domain::{ImageId, Owner, Scope, secrets};
use safelight_store::{Access, LiveSigningKey, NewSigningKey};

use super::{
    authenticator::Authenticator, caller::scope_missing, client::Sender, key_needed::key_missing,
};
use crate::http::{
    extract::PathId,
    problem::{Problem, ProblemCode},
    turns::Turns,
};

/// Seconds that a signed URL is valid at most: a year.
pub const MAX_SECONDS: u32 = 365 * 86_400;

/// Signatures whose key is looked up at the same time, a quarter of the usual connections to the database, and those that
/// wait: anybody can name keys that nobody has.
const CHECKING: usize = 4;
const QUEUED: usize = 1024;

/// How far the clocks of those who sign and of nodes may differ.
const CLOCK_SKEW_SECONDS: i64 = 300;

/// Signs URLs, and checks access to private images. Clones share it.
#[derive(Clone)]
pub struct SignedUrls {
    store: Arc<dyn Access>,
    authenticator: Authenticator,
    checks: Arc<Turns>,
}

/// A URL that was signed.
pub struct SignedUrl {
    /// The path with its signature.
    pub url: String,
    /// When it expires, in Unix seconds.
    pub expires: i64,
    /// The key that it was signed with.
    pub key_id: String,
}

impl SignedUrls {
    /// Over the signing keys in `store`.
    pub fn new(store: Arc<dyn Access>, authenticator: Authenticator) -> Self {
        Self { store, authenticator, checks: Arc::new(Turns::new(CHECKING, QUEUED)) }
    }

    /// Whether the sender of this request may read a private image of `owner`: by a signature in the URL, or
    /// by a key. `None` is an image that does not exist: all but those who see everything are answered as if
    /// it were a private one of another owner, by the same steps, so that nobody learns which ids are in use.
    pub async fn check(
        &self,
        id: ImageId,
        owner: Option<&Owner>,
        uri: &Uri,
        sender: Sender<'_>,
    ) -> Result<(), Problem> {
        if let Some(signature) = Signature::from_query(uri.query())? {
            return signature.check(&*self.store, &self.checks, owner, uri.path()).await;
        }
        let caller = self.authenticator.identify(sender, &[Scope::Read]).await?;
        let caller = caller.map_err(|_| {
            key_missing().hint("there is no public image here: send a key, or use a signed URL")
        })?;
        let caller = caller.on_behalf(sender.headers)?;
        if !owner.is_some_and(|owner| caller.may_see(owner)) {
            return Err(ImageId::not_found(id));
        }
        let needs = [Scope::Read];
        if caller.has(Scope::Read) { Ok(()) } else { Err(scope_missing(Scope::Read, &needs)) }
    }

    /// Signs `path` for `seconds` with the newest key of `owner`.
    pub async fn sign(
        &self,
        path: &str,
        owner: &Owner,
        seconds: u32,
    ) -> Result<SignedUrl, Problem> {
        let key = self.newest_key(owner).await?;
        // The current second is already partly over: one more, so that the URL is valid for all of `seconds`.
        let expires = unix_now().saturating_add(i64::from(seconds) + 1);
        let signature = secrets::sign_path(&key.secret, path, expires, &key.key.id);
        let url = format!("{path}?expires={expires}&key_id={}&signature={signature}", key.key.id);
        Ok(SignedUrl { url, expires, key_id: key.key.id })
    }

    /// The newest key of an owner, created if there is none.
    async fn newest_key(&self, owner: &Owner) -> Result<LiveSigningKey, Problem> {
        if let Some(key) = self.store.newest_signing_key(owner).await? {
            return Ok(key);
        }
        let (id, secret) = secrets::new_signing_key().map_err(|error| Problem::internal(&error))?;
        let new = NewSigningKey { id, owner: owner.clone(), secret };
        self.store.create_signing_key(&new, 1).await?;
        let created = self.store.newest_signing_key(owner).await?;
        created.ok_or_else(|| Problem::internal(&"a signing key was revoked while it was created"))
    }
}

/// What a signed URL contains beside its path.
#[derive(Debug, PartialEq, Eq)]
struct Signature<'a> {
    expires: i64,
    key: &'a str,
    mac: &'a str,
}

impl<'a> Signature<'a> {
    /// The signature in this query; `None` if it has none. Links are often decorated: other parameters are
    /// ignored.
    fn from_query(query: Option<&'a str>) -> Result<Option<Self>, Problem> {
        let values = |name: &str| {
            let pairs =
                query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).collect::<Vec<_>>()
        };
        let (expires, key, signature) = (values("expires"), values("key_id"), values("signature"));
        match (&expires[..], &key[..], &signature[..]) {
            ([], [], []) => Ok(None),
            ([expires], [key], [mac]) => match expires.parse::<i64>() {
                // Only the one spelling that was signed.
                Ok(number) if number.to_string() == **expires => {
                    Ok(Some(Self { expires: number, key, mac }))
                }
                _ => Err(invalid()),
            },
            _ => Err(invalid()),
        }
    }

    async fn check(
        &self,
        store: &dyn Access,
        turns: &Turns,
        owner: Option<&Owner>,
        path: &str,
    ) -> Result<(), Problem> {
        let turn = turns.take().await;
        let _turn = turn.ok_or_else(|| {
            Problem::new(
                ProblemCode::TooManyRequests,
                "This node checks as many signed URLs as it allows.",
            )
        })?;
        let known = store.signing_key(self.key).await?;
        let is_signed = known.as_ref().is_some_and(|known| {
            secrets::is_signed(&known.secret, path, self.expires, self.key, self.mac)
        });
        // Also for an image that does not exist, so that the answer takes as long.
        let is_owners = |known: &LiveSigningKey| owner == Some(&known.key.owner);
        if !is_signed || !known.as_ref().is_some_and(is_owners) {
            return Err(invalid());
        }
        self.check_expiry(unix_now())
    }

    fn check_expiry(&self, now: i64) -> Result<(), Problem> {
        if self.expires <= now {
            return Err(Problem::new(ProblemCode::SignatureExpired, "The signed URL has expired."));
        }
        // Owners also sign by themselves.
        if self.expires - now > i64::from(MAX_SECONDS) + CLOCK_SKEW_SECONDS {
            let detail = "A signed URL may be valid for a year at most.";
            return Err(Problem::new(ProblemCode::InvalidSignature, detail)
                .hint("sign it again with an earlier `expires`"));
        }
        Ok(())
    }
}

fn invalid() -> Problem {
    Problem::new(
        ProblemCode::InvalidSignature,
        "The signature does not match the URL, or its key was revoked.",
    )
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_parameters_must_be_complete_and_unique() {
        let read = |query| Signature::from_query(Some(query));
        let complete = Signature { expires: 7, key: "k", mac: "s" };
        assert_eq!(read("wait=3&expires=7&key_id=k&signature=s").expect("one"), Some(complete));
        assert_eq!(read("wait=3&other").expect("none"), None);
        assert_eq!(Signature::from_query(None).expect("none"), None);
        for bad in [
            "expires=7",
            "expires=7&key_id=k",
            "expires=x&key_id=k&signature=s",
            "expires=+7&key_id=k&signature=s",
            "expires=007&key_id=k&signature=s",
            "expires=-0&key_id=k&signature=s",
            "expires=%37&key_id=k&signature=s",
            "expires=7&key_id=k&signature=s&signature=t",
        ] {
            assert_eq!(read(bad).expect_err(bad).code(), ProblemCode::InvalidSignature);
        }
    }
    #[test]
    fn expiry_lies_within_the_next_year() {
        let now = 1_800_000_000;
        let check = |expires| {
            let checked = Signature { expires, key: "k", mac: "s" }.check_expiry(now);
            checked.map_err(|problem| problem.code())
        };
        let year = i64::from(MAX_SECONDS);
        assert_eq!(check(now), Err(ProblemCode::SignatureExpired));
        assert_eq!(check(-7), Err(ProblemCode::SignatureExpired));
        assert_eq!(check(i64::MIN), Err(ProblemCode::SignatureExpired));
        assert_eq!(check(now + 1), Ok(()));
        assert_eq!(check(now + year + 1), Ok(()));
        assert_eq!(check(now + 2 * year), Err(ProblemCode::InvalidSignature));
        assert_eq!(check(i64::MAX), Err(ProblemCode::InvalidSignature));
    }
}
