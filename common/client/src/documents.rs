use serde::Deserialize;
use serde_json::Value;

/// The document of a failed request (RFC 9457), as far as a client uses it.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Problem {
    pub title: Option<String>,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub retryable: Option<bool>,
}

/// One page of a list of tasks.
#[derive(Debug, Deserialize)]
pub struct TaskPage {
    /// The task documents, newest first.
    pub tasks: Vec<Value>,
    /// Where the next page begins; `None` on the last.
    pub next_cursor: Option<String>,
}

/// One page of the tasks that a retry by filter applies to.
#[derive(Debug, Deserialize)]
pub struct RetriedTasks {
    /// Ids of tasks.
    pub tasks: Vec<String>,
    /// Where the next page begins; `None` on the last.
    pub next_cursor: Option<String>,
}
