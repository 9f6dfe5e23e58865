//! A part that is away fails every request, and is worth a line a minute rather than one each.

use std::{
    fmt::Display,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Between two lines about the same part.
const QUIET: Duration = Duration::from_mins(1);

/// One part's trouble.
pub struct Trouble {
    what: &'static str,
    told: Mutex<Option<Instant>>,
}

impl Trouble {
    /// `what` is what the line says.
    pub const fn new(what: &'static str) -> Self {
        Self { what, told: Mutex::new(None) }
    }

    /// Warns, unless it has done so within the last minute.
    pub fn note(&self, error: &dyn Display) {
        if self.is_due() {
            tracing::warn!(%error, "{}; more of it is logged as debug", self.what);
        } else {
            tracing::debug!(%error, "{}", self.what);
        }
    }

    fn is_due(&self) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|at| at.elapsed() >= QUIET);
        if due {
            *told = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_many_is_told() {
        let trouble = Trouble::new("away");
        assert!(trouble.is_due());
        assert!((0..100).all(|_| !trouble.is_due()));
    }
}
