//! Children of a backfill that a tally has found ended, on either backend.

use safelight_domain::ItemOutcome;
use uuid::Uuid;

use super::Item;

/// What is reported, counted, and kept or forgotten of them.
#[derive(Default)]
pub struct Tallied {
    /// Their lines in the report.
    pub items: Vec<Item>,
    /// Their tasks are kept for whoever wants to try them again.
    pub failed: Vec<Uuid>,
    /// Their tasks are forgotten.
    pub others: Vec<Uuid>,
}

impl Tallied {
    /// Adds a child: its task and its line.
    pub fn add(&mut self, task: Uuid, item: Item) {
        let failed = item.outcome == ItemOutcome::Failed;
        if failed { &mut self.failed } else { &mut self.others }.push(task);
        self.items.push(item);
    }

    /// How many ended so.
    pub fn count(&self, outcome: ItemOutcome) -> usize {
        self.items.iter().filter(|item| item.outcome == outcome).count()
    }
}
