//! The calls of the API, except uploads. Each can be repeated safely.

use std::fmt::Display;

use bytes::Bytes;
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use tokio::io::AsyncWrite;

use crate::{
    client::{Client, body},
    documents::{RetriedTasks, TaskPage},
    error::ClientError,
    lines,
    upload::accepted,
};

/// Query parameters.
type Query<'a> = &'a [(&'a str, String)];

impl Client {
    /// The bytes at a path, such as an image's `url`.
    pub async fn bytes(&self, path: &str) -> Result<Bytes, ClientError> {
        self.call_and_read(|| self.request(Method::GET, path), body).await
    }

    /// One page of the tasks that the query selects.
    pub async fn list_tasks(&self, query: Query<'_>) -> Result<TaskPage, ClientError> {
        self.call(|| self.request(Method::GET, "/v1/tasks").query(query)).await
    }

    /// A task.
    pub async fn task(&self, id: impl Display) -> Result<Value, ClientError> {
        self.json(&format!("/v1/tasks/{id}")).await
    }

    /// Waits until a task has ended; returns it.
    pub async fn wait_for_task(&self, id: impl Display) -> Result<Value, ClientError> {
        let path = format!("/v1/tasks/{id}");
        loop {
            let request = || self.request(Method::GET, &path).header("prefer", "wait=30");
            let task: Value = self.call(request).await?;
            if !task["finished_at"].is_null() {
                return Ok(task);
            }
        }
    }

    /// Retries a failed task.
    pub async fn retry_task(&self, id: impl Display) -> Result<Value, ClientError> {
        self.post(&format!("/v1/tasks/{id}/retry")).await
    }

    /// Retries one page of the failed tasks that the query selects.
    pub async fn retry_tasks(&self, query: Query<'_>) -> Result<RetriedTasks, ClientError> {
        self.call(|| self.request(Method::POST, "/v1/tasks/retry").query(query)).await
    }

    /// Cancels a task.
    pub async fn cancel_task(&self, id: impl Display) -> Result<Value, ClientError> {
        self.post(&format!("/v1/tasks/{id}/cancel")).await
    }

    /// Deletes an image; returns the task that removes what was stored of it.
    pub async fn delete_image(&self, id: impl Display) -> Result<Value, ClientError> {
        let path = format!("/v1/images/{id}");
        self.call_and_read(|| self.request(Method::DELETE, &path), accepted).await
    }

    /// Starts a backfill. The document's `id` makes repetitions harmless.
    pub async fn start_backfill(&self, document: &Value) -> Result<Value, ClientError> {
        self.call(|| self.request(Method::POST, "/v1/backfills").json(document)).await
    }

    /// Pauses a backfill.
    pub async fn pause_backfill(&self, id: impl Display) -> Result<Value, ClientError> {
        self.post(&format!("/v1/tasks/{id}/pause")).await
    }

    /// Resumes a paused backfill.
    pub async fn resume_backfill(&self, id: impl Display) -> Result<Value, ClientError> {
        self.post(&format!("/v1/tasks/{id}/resume")).await
    }

    /// Writes a backfill's report, one JSON object per line, to `target`.
    pub async fn backfill_report(
        &self,
        id: impl Display,
        target: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), ClientError> {
        let path = format!("/v1/tasks/{id}/report");
        let request = |after: Option<&str>| -> RequestBuilder {
            let request = self.request(Method::GET, &path);
            match after {
                Some(id) => request.query(&[("after", id)]),
                None => request,
            }
        };
        lines::download(self.tries(), request, target).await
    }

    /// The workers.
    pub async fn workers(&self) -> Result<Value, ClientError> {
        self.json("/v1/workers").await
    }

    /// The queues.
    pub async fn queues(&self) -> Result<Value, ClientError> {
        self.json("/v1/queues").await
    }

    /// Revokes an API key.
    pub async fn revoke_key(&self, id: impl Display) -> Result<Value, ClientError> {
        let path = format!("/v1/keys/{id}");
        self.call(|| self.request(Method::DELETE, &path)).await
    }

    async fn post(&self, path: &str) -> Result<Value, ClientError> {
        self.call(|| self.request(Method::POST, path)).await
    }
}
