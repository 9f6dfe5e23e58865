//! `safelight openapi`: print the OpenAPI document, for code generators.

use crate::{error::CommandError, output::output};

/// Prints the document that `/openapi.json` serves.
pub fn run() -> Result<(), CommandError> {
    let document = safelight_api::openapi().to_pretty_json().map_err(CommandError::failed)?;
    output!("{document}");
    Ok(())
}
