//! The secrets of keys, and signatures of URLs.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::ContentHash;

/// The prefix of every key, so that scanners for leaked secrets detect one.
const MARK: &str = "sl_";

/// The number of characters of a key's prefix after the mark: 50 random bits, enough against collisions.
const PREFIX_CHARS: usize = 10;

/// The number of random bytes of a secret.
const SECRET_BYTES: usize = 32;

/// The system cannot provide random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the system cannot provide random bytes: {0}")]
pub struct NoRandomness(getrandom::Error);

/// The secret of a key: `sl_` and 10 characters that identify the key, `_`, and 32 random bytes in base64url.
/// Only its hash is stored.
#[derive(Clone)]
pub struct ApiSecret(String);

impl ApiSecret {
    /// A new secret.
    pub fn new() -> Result<Self, NoRandomness> {
        let prefix = random_name::<PREFIX_CHARS>()?;
        let secret = URL_SAFE_NO_PAD.encode(random::<SECRET_BYTES>()?);
        Ok(Self(format!("{MARK}{prefix}_{secret}")))
    }

    /// Parses what a client sent; `None` if it does not have the form of a secret.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(MARK)?;
        let (prefix, secret) = rest.split_at_checked(PREFIX_CHARS)?;
        let secret = secret.strip_prefix('_')?;
        let plain = prefix.bytes().all(|byte| NAME_CHARS.contains(&byte));
        let decoded = URL_SAFE_NO_PAD.decode(secret).ok()?;
        (plain && decoded.len() == SECRET_BYTES).then(|| Self(text.to_owned()))
    }

    /// The first characters, which are not confidential.
    pub fn prefix(&self) -> &str {
        &self.0[..MARK.len() + PREFIX_CHARS]
    }

    /// The whole secret, for the only time that it is shown.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The hash to store.
    pub fn hash(&self) -> ContentHash {
        ContentHash::of(self.0.as_bytes())
    }

    /// Whether it has this hash, compared in constant time.
    pub fn is(&self, hash: &ContentHash) -> bool {
        self.hash().0.ct_eq(&hash.0).into()
    }
}

/// Never shows the secret.
impl std::fmt::Debug for ApiSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiSecret({}…)", self.prefix())
    }
}

/// A new id and secret of a key for signed URLs.
pub fn new_signing_key() -> Result<(String, Vec<u8>), NoRandomness> {
    Ok((format!("sk_{}", random_name::<PREFIX_CHARS>()?), random::<SECRET_BYTES>()?.to_vec()))
}

/// Encodes the secret of a key for signed URLs in base64url, to show it to its holder.
pub fn encode(secret: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(secret)
}

/// Signs the path of an image's bytes: HMAC-SHA-256 (RFC 2104), in base64url without padding, over
///
/// ```text
/// safelight-url-v1 LF path LF expires LF key id
/// ```
///
/// where `path` names image and preset (`/images/{id}/{preset}`) and `expires` is in Unix seconds.
pub fn sign_path(secret: &[u8], path: &str, expires: i64, key: &str) -> String {
    URL_SAFE_NO_PAD.encode(mac(secret, path, expires, key).finalize().into_bytes())
}

/// Whether [`sign_path`] gives `signature`, compared in constant time.
pub fn is_signed(secret: &[u8], path: &str, expires: i64, key: &str, signature: &str) -> bool {
    let Ok(signature) = URL_SAFE_NO_PAD.decode(signature) else { return false };
    mac(secret, path, expires, key).verify_slice(&signature).is_ok()
}

fn mac(secret: &[u8], path: &str, expires: i64, key: &str) -> Hmac<Sha256> {
    // HMAC accepts keys of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret)
        .unwrap_or_else(|_| unreachable!("HMAC accepts any key"));
    mac.update(format!("safelight-url-v1\n{path}\n{expires}\n{key}").as_bytes());
    mac
}

/// No characters that look similar, and none at which the selection of a double click ends.
const NAME_CHARS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

fn random_name<const N: usize>() -> Result<String, NoRandomness> {
    let bytes = random::<N>()?;
    Ok(bytes.iter().map(|byte| char::from(NAME_CHARS[usize::from(byte % 32)])).collect())
}

/// Random bytes from the operating system's generator.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(NoRandomness)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn api_secret_parses_and_matches_only_its_hash() {
        let secret = ApiSecret::new().expect("random bytes");
        let sent = ApiSecret::parse(secret.reveal()).expect("a key");
        assert_eq!(sent.prefix(), secret.prefix());
        assert!(sent.is(&secret.hash()));
        assert!(!sent.is(&ApiSecret::new().expect("random bytes").hash()));
        assert!(!format!("{secret:?}").contains(&secret.reveal()[14..]));
        let text = secret.reveal();
        for bad in ["", "sl_", &text[1..], &text[..text.len() - 1], &format!("{text}A"), "sl_é"] {
            assert!(ApiSecret::parse(bad).is_none(), "{bad}");
        }
    }

    /// Computed in Python by the recipe in docs/security.md:
    /// `hmac.new(b"secret", b"safelight-url-v1\n/images/x/small\n1700000000\nsk_a", "sha256")`.
    #[test]
    fn signature_equals_that_of_any_hmac_library() {
        let signature = sign_path(b"secret", "/images/x/small", 1_700_000_000, "sk_a");
        assert_eq!(signature, "czWRh_RQMT5pchFNL8Om-YNRno4coWL-aIAxrln4lL4");
    }

    proptest! {
        #[test]
        fn signature_is_valid_only_for_what_was_signed(
            secret in prop::collection::vec(any::<u8>(), 0..80),
            other in prop::collection::vec(any::<u8>(), 0..80),
            paths in ("/[a-z/]{0,20}", "/[a-z/]{0,20}"),
            expires in (any::<i64>(), any::<i64>()),
            noise in "[A-Za-z0-9_-]{0,50}",
        ) {
            let signed = |secret: &[u8], path: &str, expires, signature: &str| {
                is_signed(secret, path, expires, "sk_a", signature)
            };
            let signature = sign_path(&secret, &paths.0, expires.0, "sk_a");
            prop_assert!(signed(&secret, &paths.0, expires.0, &signature));
            // HMAC pads short keys with zeros, so keys that differ only in trailing zeros are equal.
            let same = secret.iter().rev().skip_while(|byte| **byte == 0)
                .eq(other.iter().rev().skip_while(|byte| **byte == 0));
            prop_assert_eq!(signed(&other, &paths.0, expires.0, &signature), same);
            prop_assert_eq!(signed(&secret, &paths.1, expires.0, &signature), paths.0 == paths.1);
            prop_assert_eq!(signed(&secret, &paths.0, expires.1, &signature), expires.0 == expires.1);
            prop_assert!(!is_signed(&secret, &paths.0, expires.0, "sk_b", &signature));
            prop_assert_eq!(signed(&secret, &paths.0, expires.0, &noise), noise == signature);
        }
    }
}
