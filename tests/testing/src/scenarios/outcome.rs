//! What a scenario gets, and what it counts.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::{Value, json};

use crate::audit::Report;

/// An outage that is shorter may end before anybody notices it.
const SHORTEST: Duration = Duration::from_secs(3);

/// The program under test, and how long its outages are.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The program.
    pub binary: PathBuf,
    /// The length of outages as a part of their full length.
    pub scale: f64,
}

impl Setting {
    /// The length of an outage that lasts `full` at scale 1.
    pub fn outage(&self, full: Duration) -> Duration {
        full.mul_f64(self.scale).max(SHORTEST)
    }
}

/// The counts of a scenario. All lists of a correct deployment are empty.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Uploads whose response was 202.
    pub accepted: usize,
    /// Those whose image cannot be had any more.
    pub lost: Vec<String>,
    /// Those whose task did not end.
    pub stuck: Vec<String>,
    /// Renditions that do not show their original, and effects that happened twice.
    pub wrong: Vec<String>,
    /// Bytes and work that nothing refers to.
    pub left: Vec<String>,
    /// Other promises that did not hold.
    pub broken: Vec<String>,
    /// Accepted uploads that an engine acknowledged and lost: their bytes, and their tasks say so; or their rows, and
    /// their bytes are kept.
    pub reported: usize,
    /// The number of rejected requests by status.
    pub rejections: BTreeMap<String, u32>,
}

impl Outcome {
    /// Adds the findings of an audit.
    pub fn add(&mut self, report: Report) {
        self.accepted += report.accepted;
        self.lost.extend(report.lost);
        self.stuck.extend(report.stuck);
        self.wrong.extend(report.wrong);
        self.wrong.extend(report.doubled);
        self.left.extend(report.left);
    }

    /// Adds the rejections of clients. During an outage only 503 and 507 are right, which tell a client to come back.
    pub fn reject(&mut self, rejections: BTreeMap<String, u32>) {
        for (status, count) in rejections {
            if status == "500" {
                self.broken.push(format!("{count} uploads were answered with 500"));
            }
            *self.rejections.entry(status).or_default() += count;
        }
    }

    /// Adds a promise that did not hold, unless `held`.
    pub fn expect(&mut self, held: bool, promise: &str) {
        if !held {
            self.broken.push(format!("not true: {promise}"));
        }
    }

    /// Adds all counts of another outcome.
    pub fn merge(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.lost.extend(other.lost);
        self.stuck.extend(other.stuck);
        self.wrong.extend(other.wrong);
        self.left.extend(other.left);
        self.broken.extend(other.broken);
        self.reported += other.reported;
        for (status, count) in other.rejections {
            *self.rejections.entry(status).or_default() += count;
        }
    }

    /// The lists by the name of their column.
    pub fn findings(&self) -> [(&'static str, &[String]); 5] {
        [
            ("lost", &self.lost),
            ("stuck", &self.stuck),
            ("wrong", &self.wrong),
            ("left", &self.left),
            ("broken", &self.broken),
        ]
    }

    /// Whether everything that was promised held.
    pub fn is_clean(&self) -> bool {
        self.findings().iter().all(|(_, list)| list.is_empty())
    }

    /// The counts as JSON.
    pub fn counts(&self) -> Value {
        let mut counts = json!({
            "accepted": self.accepted, "reported": self.reported, "rejections": self.rejections,
        });
        for (name, list) in self.findings() {
            counts[name] = list.len().into();
        }
        counts
    }
}
