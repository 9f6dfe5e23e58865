//! How a command ends badly: one line, one hint, a stable exit code.

use std::{fmt::Display, process::ExitCode};

use safelight_config::ConfigError;

use crate::say::tell;

/// A failed command. Code 1: it could not be done. Code 2: it cannot be done like this.
#[derive(Debug)]
pub struct Exit {
    code: u8,
    message: String,
    hint: Option<String>,
}

impl Exit {
    /// The command could not do its work.
    pub fn failed(message: impl Display) -> Self {
        Self { code: 1, message: message.to_string(), hint: None }
    }

    /// The command was asked for something that cannot be.
    pub fn usage(message: impl Display) -> Self {
        Self { code: 2, message: message.to_string(), hint: None }
    }

    /// Adds what to do about it.
    pub fn hint(self, hint: impl Display) -> Self {
        Self { hint: Some(hint.to_string()), ..self }
    }

    /// Says it on standard error. Never more than a line each, whatever a library wrote.
    pub fn report(&self) -> ExitCode {
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        tell!("error: {}", one_line(&self.message));
        if let Some(hint) = &self.hint {
            tell!("hint: {}", one_line(hint));
        }
        ExitCode::from(self.code)
    }
}

impl From<ConfigError> for Exit {
    fn from(error: ConfigError) -> Self {
        let hint = error.hint();
        Self::usage(error).hint(hint)
    }
}
