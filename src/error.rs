//! How a command fails: one line, one hint, a stable exit code.

use std::{fmt::Display, process::ExitCode};

use safelight_client::ClientError;
use safelight_config::ConfigError;

use crate::output::status;

/// A failed command. Exit code 1: it could not be done. Exit code 2: its arguments or the configuration are
/// wrong.
#[derive(Debug)]
pub struct CommandError {
    code: u8,
    message: String,
    hint: Option<String>,
}

impl CommandError {
    /// The command could not be done: exit code 1.
    pub fn failed(message: impl Display) -> Self {
        Self { code: 1, message: message.to_string(), hint: None }
    }

    /// The arguments or the configuration are wrong: exit code 2.
    pub fn usage(message: impl Display) -> Self {
        Self { code: 2, message: message.to_string(), hint: None }
    }

    /// Adds what the user can do about it.
    pub fn hint(self, hint: impl Display) -> Self {
        Self { hint: Some(hint.to_string()), ..self }
    }

    /// Prints it on standard error, message and hint on one line each.
    pub fn report(&self) -> ExitCode {
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        status!("error: {}", one_line(&self.message));
        if let Some(hint) = &self.hint {
            status!("hint: {}", one_line(hint));
        }
        ExitCode::from(self.code)
    }
}

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> Self {
        let hint = error.hint();
        Self::usage(error).hint(hint)
    }
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        let failed = Self::failed(&error);
        match error.hint() {
            Some(hint) => failed.hint(hint),
            None if error.is_unreachable() => {
                failed.hint("is a server running there? name it with --url or SAFELIGHT_URL")
            }
            None => failed,
        }
    }
}
