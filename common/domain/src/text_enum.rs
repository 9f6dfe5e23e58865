//! Enums whose values have stable names in the database, the API and the configuration.

/// The name is not a value of the enum.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown {what} `{name}` (expected one of: {expected})")]
pub struct UnknownName {
    /// The kind of value, such as `status`.
    pub what: &'static str,
    /// The unknown name.
    pub name: String,
    /// The valid names.
    pub expected: String,
}

/// Declares a field-less enum whose values have one stable name in SQL, JSON and queue names.
macro_rules! text_enum {
    (
        $(#[$meta:meta])*
        $what:literal $enum:ident { $( $(#[$vmeta:meta])* $variant:ident = $name:literal ),+ $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord,
            serde::Serialize, serde::Deserialize,
        )]
        pub enum $enum { $( $(#[$vmeta])* #[serde(rename = $name)] $variant ),+ }

        impl $enum {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[ $( Self::$variant ),+ ];

            /// The stable name.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $name ),+ }
            }
        }

        // Not derived, because the derive would use the names of the variants.
        impl utoipa::PartialSchema for $enum {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .enum_values(Some(Self::ALL.iter().map(|value| value.as_str())))
                    .into()
            }
        }

        impl utoipa::ToSchema for $enum {
            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($enum).into()
            }
        }

        impl std::fmt::Display for $enum {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $enum {
            type Err = $crate::UnknownName;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|v| v.as_str() == name).ok_or_else(|| {
                    $crate::UnknownName {
                        what: $what,
                        name: name.to_owned(),
                        expected: [$( $name ),+].join(", "),
                    }
                })
            }
        }
    };
}

pub(crate) use text_enum;
