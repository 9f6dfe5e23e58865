//! A task as server-sent events (WHATWG HTML, section 9.2).

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{Stream, stream};
use safelight_domain::{Task, TaskId, retry::Reconnect};
use utoipa::ToSchema;

use crate::{
    auth::Caller,
    http::{
        draining::Draining, extract::Id, problem::Problem, responses::problem_responses,
        turns::Turn,
    },
    routes::{documents::TaskDocument, task_responses::load},
    state::ApiState,
    watch::{Waiting, Watcher},
};

problem_responses! {
    EventProblems: TaskNotFound, TooManyWaiting, DatabaseUnavailable;
}

const NOT_CACHED: HeaderValue = HeaderValue::from_static("private, no-store");

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Time between comments that keep proxies from closing a silent stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The fields of one event. The server sends them as lines in the format of server-sent events, not as JSON.
#[derive(ToSchema)]
#[schema(as = TaskEvent)]
#[allow(dead_code)] // read by the derive alone
struct TaskEventDocument {
    /// Always `task`.
    #[schema(example = "task")]
    event: String,
    /// The task's version.
    id: String,
    /// The task document, as JSON.
    data: String,
}

/// Follow a task as server-sent events.
///
/// Each event is named `task`; its `id` is the task's version, and its data is the task document. The stream
/// ends after the final document, and soon after the caller's key expires or is revoked. A client that
/// reconnects with the final version in `Last-Event-ID` receives 204, which makes an `EventSource` stop.
#[utoipa::path(
    get, path = "/v1/tasks/{id}/events", operation_id = "follow_task", tag = "tasks",
    params(
        ("id" = TaskId, Path, description = "The task's id"),
        ("last-event-id" = Option<String>, Header, description = "The last version that the client received"),
    ),
    responses(
        (status = 200, description = "Events named `task`, each with the task document as its data", body = TaskEventDocument, content_type = "text/event-stream"),
        (status = 204, description = "The client has already received the final document"),
        EventProblems,
    ),
)]
pub async fn events(
    State(state): State<ApiState>,
    caller: Caller,
    Draining(draining): Draining,
    turn: Turn,
    Id(id): Id<TaskId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // An id that is not ours is no reason to reject: the client then gets the task from the start.
    let seen = headers.get(LAST_EVENT_ID).and_then(|v| v.to_str().ok()?.parse::<i64>().ok());
    let task = load(&state, &caller, id).await?;
    turn.end();
    if seen == Some(task.version) && task.status.is_final() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let watcher = state.watch.watch(id, &Waiting::from(&caller))?;
    let (version, first) = match seen {
        Some(seen) if seen == task.version => (seen, None),
        _ => (task.version, Some(task)),
    };
    let session = state.session_guards.guard(&caller);
    let ended = async move {
        tokio::select! {
            () = draining.cancelled() => {}
            _ = session.ended() => {}
        }
    };
    let feed = Feed { state, id, version, first, watcher, over: false };
    let stream = stream::unfold(feed, Feed::next);
    let stream = futures::StreamExt::take_until(stream, ended);
    let stream: std::pin::Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(stream);
    let events = Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // axum's `no-cache` allows caches to keep the stream.
    Ok(([(header::CACHE_CONTROL, NOT_CACHED)], events).into_response())
}

/// One client's stream.
struct Feed {
    state: ApiState,
    id: TaskId,
    /// The last version sent.
    version: i64,
    /// The document to begin with.
    first: Option<Task>,
    watcher: Watcher,
    over: bool,
}

impl Feed {
    /// The next event and what follows it; `None` after the final one.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if self.over {
            return None;
        }
        let task = match self.first.take() {
            Some(task) => task,
            None => self.changed().await?,
        };
        self.version = task.version;
        self.over = task.status.is_final();
        let document = serde_json::to_string(&TaskDocument::new(&task, &self.state.presets));
        let document = document.map_err(|error| Problem::internal(&error)).ok()?;
        let event = Event::default().event("task").id(task.version.to_string()).data(document);
        Some((Ok(event), self))
    }

    /// The task once it has changed; `None` if it is gone. An unavailable database delays.
    async fn changed(&mut self) -> Option<Task> {
        self.watcher.changed_from(self.version).await;
        let mut reconnect = Reconnect::default();
        loop {
            match self.state.store.task(self.id).await {
                Ok(task) => return task,
                Err(error) => {
                    tracing::warn!(%error, "cannot read a task for its events");
                    tokio::time::sleep(reconnect.next_delay()).await;
                }
            }
        }
    }
}
