//! `safelight openapi`: the contract, for generators.

use crate::exit::Exit;
use crate::say::say;

/// Prints the document that `/openapi.json` serves.
pub fn run() -> Result<(), Exit> {
    let document = safelight_api::openapi().to_pretty_json().map_err(Exit::failed)?;
    say!("{document}");
    Ok(())
}
