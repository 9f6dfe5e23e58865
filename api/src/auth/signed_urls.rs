//! Private images: who may read their bytes, and URLs that contain the permission.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::http::{HeaderMap, Uri, uri::Authority};
use safelight_domain::{ImageId, Owner, Scope, secrets};
use safelight_store::{Access, LiveSigningKey, NewSigningKey};

use super::{
    authenticator::Authenticator,
    caller::{key_missing, scope_missing},
};
use crate::http::{
    extract::PathId,
    problem::{Problem, ProblemCode},
};

/// Signs URLs, and checks access to private images. Clones share it.
#[derive(Clone)]
pub struct SignedUrls {
    store: Arc<dyn Access>,
    authenticator: Authenticator,
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
    pub const fn new(store: Arc<dyn Access>, authenticator: Authenticator) -> Self {
        Self { store, authenticator }
    }

    /// Whether the sender of this request may read a private image of `owner`: by a signature in the URL, or
    /// by a key.
    pub async fn check(
        &self,
        id: ImageId,
        owner: &Owner,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), Problem> {
        if let Some(signature) = Signature::from_query(uri.query())? {
            return signature.check(&*self.store, owner, uri.path()).await;
        }
        let authority = uri.authority().map(Authority::as_str);
        let caller = self.authenticator.identify(headers, authority, &[Scope::Read]).await?;
        let caller = caller.ok_or_else(|| {
            key_missing().hint("the image is private: send a key, or use a signed URL")
        })?;
        let caller = caller.on_behalf(headers)?;
        if !caller.may_see(owner) {
            return Err(ImageId::not_found(id));
        }
        if caller.has(Scope::Read) { Ok(()) } else { Err(scope_missing(Scope::Read)) }
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
            ([expires], [key], [mac]) => match expires.parse() {
                Ok(expires) => Ok(Some(Self { expires, key, mac })),
                Err(_) => Err(invalid()),
            },
            _ => Err(invalid()),
        }
    }

    async fn check(&self, store: &dyn Access, owner: &Owner, path: &str) -> Result<(), Problem> {
        let known = store.signing_key(self.key).await?;
        let is_owners = |known: &LiveSigningKey| known.key.owner == *owner;
        let known = known.filter(is_owners).ok_or_else(invalid)?;
        if !secrets::is_signed(&known.secret, path, self.expires, self.key, self.mac) {
            return Err(invalid());
        }
        if self.expires <= unix_now() {
            return Err(Problem::new(ProblemCode::SignatureExpired, "The signed URL has expired."));
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
            "expires=7&key_id=k&signature=s&signature=t",
        ] {
            assert_eq!(read(bad).expect_err(bad).code(), ProblemCode::InvalidSignature);
        }
    }
}
