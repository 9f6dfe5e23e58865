//! `safelight tasks`: list, show, retry and cancel tasks.

use std::{fmt::Display, time::Duration};

use clap::{Args, Subcommand};
use safelight_client::ClientError;
use safelight_domain::{ErrorCode, JobKind, Status, TaskId, TaskKind};
use serde_json::{Value, json};

use super::server_args::ServerArgs;
use crate::{
    error::CommandError,
    output::{output, status},
};

/// Tasks in one request.
const PAGE: u32 = 500;

/// Options of `safelight tasks`.
#[derive(Args)]
pub struct TasksArgs {
    #[command(subcommand)]
    command: TasksCommand,
}

#[derive(Subcommand)]
enum TasksCommand {
    /// List tasks, newest first
    List {
        #[command(flatten)]
        filter: Filter,
        /// Maximum number of tasks
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: usize,
        #[command(flatten)]
        output: Output,
    },
    /// Show one task with its jobs
    Show {
        /// The task's id
        id: TaskId,
        /// Wait until it has ended
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Retry failed tasks: those with the given ids, or those that a filter selects
    Retry {
        /// Ids of tasks
        #[arg(conflicts_with_all = ["all", "kind", "code", "owner", "older_than", "newer_than"])]
        ids: Vec<TaskId>,
        /// All failed tasks
        #[arg(long)]
        all: bool,
        /// Only print which tasks would be retried
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        output: Output,
    },
    /// Cancel tasks and delete the stored bytes of their images
    Cancel {
        /// Ids of tasks
        #[arg(required = true)]
        ids: Vec<TaskId>,
        #[command(flatten)]
        output: Output,
    },
}

/// How to print tasks, and which server has them.
#[derive(Args)]
struct Output {
    /// Print one JSON object per task
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// The tasks that a command selects.
#[derive(Args)]
struct Filter {
    /// Only tasks in this state: queued, running, succeeded, failed, cancelled
    #[arg(long)]
    status: Option<Status>,
    #[arg(long, value_parser = kind, help = kind_help())]
    kind: Option<String>,
    /// Only tasks with a job whose last failure has this code, such as `store_unavailable`
    #[arg(long)]
    code: Option<ErrorCode>,
    /// Only tasks of this owner
    #[arg(long)]
    owner: Option<String>,
    /// Only tasks accepted longer ago than this, such as 90s, 15m, 2h or 7d
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Only tasks accepted within this time
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
}

/// A name of both is a kind of task.
fn kind_help() -> String {
    let task_kinds: Vec<_> = TaskKind::ALL.iter().map(|kind| kind.as_str()).collect();
    let job_kinds = JobKind::ALL.iter().map(|kind| kind.as_str());
    let job_kinds: Vec<_> = job_kinds.filter(|name| !task_kinds.contains(name)).collect();
    format!(
        "Only tasks of this kind ({}), or with a job of this kind ({})",
        task_kinds.join(", "),
        job_kinds.join(", ")
    )
}

/// A name of a kind of task or of job.
fn kind(name: &str) -> Result<String, String> {
    match (name.parse::<TaskKind>(), name.parse::<JobKind>()) {
        (Err(task), Err(job)) => Err(format!("{task}; {job}")),
        _ => Ok(name.to_owned()),
    }
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.status.is_none() && self.query().is_empty()
    }

    /// As query parameters; without the state, which not every call takes.
    fn query(&self) -> Vec<(&'static str, String)> {
        let ago = |age: Duration| {
            let time = std::time::SystemTime::now().checked_sub(age);
            humantime::format_rfc3339_micros(time.unwrap_or(std::time::UNIX_EPOCH)).to_string()
        };
        let parameters = [
            ("kind", self.kind.clone()),
            ("code", self.code.map(|code| code.to_string())),
            ("owner", self.owner.clone()),
            ("created_before", self.older_than.map(ago)),
            ("created_after", self.newer_than.map(ago)),
        ];
        parameters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// Runs the subcommand.
pub async fn run(args: TasksArgs) -> Result<(), CommandError> {
    match args.command {
        TasksCommand::List { filter, limit, output } => list(&filter, limit, &output).await,
        TasksCommand::Show { id, wait, output } => show(id, wait, &output).await,
        TasksCommand::Retry { ids, all, dry_run, filter, output } => {
            if !ids.is_empty() {
                return retry_each(&ids, dry_run, &output).await;
            }
            if !all && filter.is_empty() {
                return Err(CommandError::usage("which tasks?")
                    .hint("name their ids, give a filter such as --code, or say --all"));
            }
            if filter.status.is_some_and(|status| status != Status::Failed) {
                return Err(CommandError::usage("only failed tasks can be tried again")
                    .hint("leave --status out"));
            }
            retry_many(&filter, dry_run, &output).await
        }
        TasksCommand::Cancel { ids, output } => cancel(&ids, &output).await,
    }
}

async fn list(filter: &Filter, limit: usize, output: &Output) -> Result<(), CommandError> {
    let client = output.server.client().await?;
    let mut query = filter.query();
    query.extend(filter.status.map(|status| ("status", status.to_string())));
    let (mut left, mut cursor) = (limit, None::<String>);
    while left > 0 {
        let mut page = query.clone();
        page.push(("limit", left.min(PAGE as usize).to_string()));
        page.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page = client.list_tasks(&page).await?;
        for task in &page.tasks {
            print_line(task, output.json);
        }
        left -= page.tasks.len().min(left);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    Ok(())
}

async fn show(id: TaskId, wait: bool, output: &Output) -> Result<(), CommandError> {
    let client = output.server.client().await?;
    let task = if wait { client.wait_for_task(id).await? } else { client.task(id).await? };
    if output.json {
        output!("{task}");
    } else {
        print_line(&task, false);
        for job in task["jobs"].as_array().map(Vec::as_slice).unwrap_or_default() {
            print_job(job);
        }
    }
    Ok(())
}

async fn retry_each(ids: &[TaskId], dry_run: bool, output: &Output) -> Result<(), CommandError> {
    let client = output.server.client().await?;
    each(ids, "tasks can be tried again", output.json, async |id| {
        if dry_run {
            let task = client.task(id).await?;
            return match task["status"].as_str() {
                Some("failed") => Ok(task),
                other => Err(ClientError::new(format!("it is {}", other.unwrap_or("unknown")))),
            };
        }
        client.retry_task(id).await
    })
    .await
}

async fn cancel(ids: &[TaskId], output: &Output) -> Result<(), CommandError> {
    let client = output.server.client().await?;
    each(ids, "tasks could be cancelled", output.json, async |id| client.cancel_task(id).await)
        .await
}

/// Makes a call for each id and prints the task in its answer. After all calls it fails if any of them did.
pub async fn each<Id: Display>(
    ids: &[Id],
    done: &str,
    as_json: bool,
    call: impl AsyncFn(&Id) -> Result<Value, ClientError>,
) -> Result<(), CommandError> {
    let mut failed = 0;
    for id in ids {
        match call(id).await {
            Ok(task) => print_line(&task, as_json),
            Err(error) if as_json => {
                failed += 1;
                output!("{}", json!({ "id": id.to_string(), "error": error.to_string() }));
            }
            Err(error) => {
                failed += 1;
                status!("{id}: {error}");
            }
        }
    }
    if failed == 0 {
        return Ok(());
    }
    Err(CommandError::failed(format!("{} of {} {done}", ids.len() - failed, ids.len())))
}

async fn retry_many(filter: &Filter, dry_run: bool, output: &Output) -> Result<(), CommandError> {
    let client = output.server.client().await?;
    let mut query = filter.query();
    query.push(("all", query.is_empty().to_string()));
    query.push(("dry_run", dry_run.to_string()));
    query.push(("limit", PAGE.to_string()));
    let (mut count, mut cursor) = (0, None::<String>);
    loop {
        let mut page = query.clone();
        page.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page = client.retry_tasks(&page).await?;
        for id in page.tasks {
            count += 1;
            if output.json {
                output!("{}", json!({ "id": id, "dry_run": dry_run }));
            } else {
                output!("{id}");
            }
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    status!("{count} tasks {}", if dry_run { "would be tried again" } else { "queued again" });
    Ok(())
}

/// Prints a task in one line: id, status, kind, time, and why it failed.
fn print_line(task: &Value, as_json: bool) {
    if as_json {
        output!("{task}");
        return;
    }
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    output!(
        "{}  {:<9}  {:<8}  {}{}",
        text(&task["id"]),
        text(&task["status"]),
        text(&task["kind"]),
        text(&task["created_at"]),
        why(&task["error"]),
    );
}

fn print_job(job: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let next = job["retry_at"].as_str().map(|at| format!("  next at {at}")).unwrap_or_default();
    output!(
        "  {:<9}  {:<9}  attempt {} of {}{next}{}",
        text(&job["kind"]),
        text(&job["status"]),
        job["attempt"],
        job["max_attempts"],
        why(&job["error"]),
    );
}

/// A failure's code and message, if there is one.
fn why(error: &Value) -> String {
    let Some(code) = error["code"].as_str() else { return String::new() };
    format!("  {code}: {}", error["message"].as_str().unwrap_or_default())
}
