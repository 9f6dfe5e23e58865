//! Owners of images, tasks, keys and quotas.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The owner of an image, a task, a key or a quota. Owners cannot see each other's objects.
///
/// Objects that were created without a key belong to [`Owner::local`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Owner(pub(crate) String);

/// The name of the local owner in the API and on the command line. In the database the name is empty, like in
/// rows from before there were owners.
const LOCAL: &str = "local";

/// Maximum number of characters in a name.
const MAX_CHARS: usize = 64;

/// The name is not valid for an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an owner's name must be 1 to 64 of a-z, A-Z, 0-9, `.`, `_`, `-` and `@`, starting with a letter or digit"
)]
pub struct InvalidOwner;

impl Owner {
    /// The owner of everything that is created without a key.
    pub const fn local() -> Self {
        Self(String::new())
    }

    /// The name in the database: empty for the local owner.
    pub fn storage_name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if self.0.is_empty() { LOCAL } else { &self.0 })
    }
}

impl FromStr for Owner {
    type Err = InvalidOwner;

    fn from_str(name: &str) -> Result<Self, InvalidOwner> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
        let begins_well = name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
        if !begins_well || name.len() > MAX_CHARS || !name.bytes().all(plain) {
            return Err(InvalidOwner);
        }
        Ok(if name == LOCAL { Self::local() } else { Self(name.to_owned()) })
    }
}

impl TryFrom<String> for Owner {
    type Error = InvalidOwner;

    fn try_from(name: String) -> Result<Self, InvalidOwner> {
        name.parse()
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        owner.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_local_owner_is_stored_without_a_name() {
        for name in ["a", "ada@example.org", "team-7_x.y", &"a".repeat(64)] {
            let owner: Owner = name.parse().expect(name);
            assert_eq!((owner.to_string().as_str(), owner.storage_name()), (name, name));
        }
        let local: Owner = "local".parse().expect("local");
        assert_eq!((local.storage_name(), local.to_string().as_str()), ("", "local"));
        assert_eq!(local, Owner::local());
        for name in ["", "-a", "*", "a b", "a/b", "é", "a\n", &"a".repeat(65)] {
            assert_eq!(name.parse::<Owner>(), Err(InvalidOwner), "{name:?}");
        }
    }
}
