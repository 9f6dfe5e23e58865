//! A type for each kind of id, so that a task's id cannot be passed for a job's.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord,
            Serialize, Deserialize, utoipa::ToSchema,
        )]
        #[serde(transparent)]
        #[schema(value_type = Uuid)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id. It is a `UUIDv7`, so ids sort by time; keyset pagination relies on that.
            #[allow(clippy::new_without_default)] // a default id would be a bug
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id! {
    /// An uploaded image.
    ImageId
}
id! {
    /// A task, which a client polls.
    TaskId
}
id! {
    /// A job: one unit of work.
    JobId
}
id! {
    /// A worker process, which holds leases by this id.
    WorkerId
}
