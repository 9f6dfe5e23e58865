//! Private images: who may read their bytes, and URLs that say so by themselves.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, Uri},
};
use chrono::{DateTime, Utc};
use safelight_domain::{ImageId, Owner, Scope, secrets};
use safelight_store::{LiveSigningKey, NewSigningKey};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Caller, identify, key_missing, scope_missing};
use crate::{
    extract::{Id, JsonBody, PathId},
    images,
    openapi::SignProblems,
    problem::{Problem, ProblemCode},
    state::ApiState,
};

/// Seconds that a signed URL is good for if nobody says.
const DEFAULT_SECONDS: u32 = 3600;

/// Seconds that a signed URL is good for at most: a year.
const MAX_SECONDS: u32 = 365 * 86_400;

/// Whether whoever sends this request may read what belongs to `owner` and is private: by a signature in
/// the URL, or by a key.
pub async fn check(
    state: &ApiState,
    id: ImageId,
    owner: &Owner,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), Problem> {
    if let Some(signature) = Signature::from_query(uri.query())? {
        return signature.check(state, owner, uri.path()).await;
    }
    let authority = uri.authority().map(axum::http::uri::Authority::as_str);
    let caller = identify(state, headers, authority, &[Scope::Read]).await?.ok_or_else(|| {
        key_missing().hint("the image is private: send a key, or use a signed URL")
    })?;
    let caller = caller.on_behalf(headers)?;
    if !caller.may_see(owner) {
        return Err(ImageId::not_found(id));
    }
    if caller.has(Scope::Read) { Ok(()) } else { Err(scope_missing(Scope::Read)) }
}

/// What a signed URL carries beside its path.
#[derive(Debug, PartialEq, Eq)]
struct Signature<'a> {
    expires: i64,
    key: &'a str,
    mac: &'a str,
}

impl<'a> Signature<'a> {
    /// That of a URL with this query; `None` if it has none. Other parameters are for whoever added them.
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

    async fn check(&self, state: &ApiState, owner: &Owner, path: &str) -> Result<(), Problem> {
        let known = state.services.store.signing_key(self.key).await?;
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
        "The URL's signature does not fit it, or its key is none any more.",
    )
}

/// What to sign.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = SignRequest)]
pub struct SignRequest {
    /// The preset; the original if there is none.
    #[schema(example = "small")]
    preset: Option<String>,
    /// Seconds for which the URL is good, 3600 unless said; up to one more.
    #[schema(minimum = 1, maximum = 31_536_000)]
    expires_in: Option<u32>,
}

/// A URL that whoever has it may read.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SignedUrl)]
pub struct SignedUrlDocument {
    /// The path with its signature; good under every name of the server.
    pub url: String,
    /// Until when.
    pub expires_at: DateTime<Utc>,
    /// The key that it was signed with: revoking it ends the URL.
    pub key_id: String,
}

/// Make a signed URL.
///
/// Whoever has it may read the bytes, until it expires or its key is revoked. An owner without a key for
/// signing gets one.
#[utoipa::path(
    post, path = "/v1/images/{id}/signed-url", operation_id = "sign_url", tag = "images",
    params(("id" = ImageId, Path, description = "The image's id")),
    request_body = SignRequest,
    responses((status = 200, description = "The URL", body = SignedUrlDocument), SignProblems),
)]
pub async fn sign(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id<ImageId>,
    JsonBody(request): JsonBody<SignRequest>,
) -> Result<Json<SignedUrlDocument>, Problem> {
    let image = images::load(&state, &caller, id).await?;
    let seconds = request.expires_in.unwrap_or(DEFAULT_SECONDS);
    if !(1..=MAX_SECONDS).contains(&seconds) {
        let detail = format!("`expires_in` must be 1 to {MAX_SECONDS} seconds.");
        return Err(Problem::new(ProblemCode::InvalidBody, detail));
    }
    let path = match &request.preset {
        None => format!("/images/{id}"),
        Some(preset) if state.presets.has(preset) => format!("/images/{id}/{preset}"),
        Some(preset) => return Err(crate::delivery::no_such_preset(&state, preset)),
    };
    let key = signing_key(&state, &image.owner).await?;
    // The second that has begun does not count, so that a URL is good for as long as was asked for.
    let expires = unix_now().saturating_add(i64::from(seconds) + 1);
    let signature = secrets::sign_path(&key.secret, &path, expires, &key.key.id);
    Ok(Json(SignedUrlDocument {
        url: format!("{path}?expires={expires}&key_id={}&signature={signature}", key.key.id),
        expires_at: DateTime::from_timestamp(expires, 0).unwrap_or_default(),
        key_id: key.key.id,
    }))
}

/// The newest key of an owner, made if there is none.
async fn signing_key(state: &ApiState, owner: &Owner) -> Result<LiveSigningKey, Problem> {
    let store = &state.services.store;
    if let Some(key) = store.newest_signing_key(owner).await? {
        return Ok(key);
    }
    let (id, secret) = secrets::new_signing_key().map_err(|error| Problem::internal(&error))?;
    store.create_signing_key(&NewSigningKey { id, owner: owner.clone(), secret }, 1).await?;
    let made = store.newest_signing_key(owner).await?;
    made.ok_or_else(|| Problem::internal(&"a signing key was revoked as it was made"))
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_stands_whole_and_once_or_not_at_all() {
        let read = |query| Signature::from_query(Some(query));
        let whole = Signature { expires: 7, key: "k", mac: "s" };
        assert_eq!(read("wait=3&expires=7&key_id=k&signature=s").expect("one"), Some(whole));
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
