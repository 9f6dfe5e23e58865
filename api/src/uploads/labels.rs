//! Reading labels from requests.

use safelight_domain::{Label, Labels};

use crate::http::problem::{Problem, ProblemCode};

/// Sets a label from text.
pub fn set(labels: &mut Labels, label: Label, text: &str) -> Result<(), Problem> {
    labels.set(label, text).map_err(|why| invalid(label.as_str(), &why))
}

/// A field that is not valid.
pub fn invalid(field: &str, why: &str) -> Problem {
    Problem::new(ProblemCode::InvalidField, format!("Field `{field}`: {why}."))
}
