//! What a command found wrong: how much, and the first of it by name.

use serde::Serialize;

/// How many are named. The number is not limited.
const NAMED: usize = 1000;

/// Objects with the same fault.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub named: Vec<String>,
}

impl Findings {
    /// Adds one.
    pub fn add(&mut self, name: impl Into<String>) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(name.into());
        }
    }
}
