//! Which tasks are meant, as query parameters.

use chrono::{DateTime, Utc};
use safelight_domain::{ErrorCode, JobKind, Owner, Scope, Status, TaskKind};
use safelight_store::TaskFilter;
use utoipa::{
    IntoParams,
    openapi::{Object, ObjectBuilder, Type},
};

use crate::{
    auth::{Caller, scope_missing},
    http::{
        extract::{Params, invalid_query},
        problem::{Problem, ProblemCode},
    },
};

/// The parameters that [`from_params`] takes. For the API's description only.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code)] // read by the derive alone
pub struct FilterParams {
    /// Only tasks in this state
    status: Option<Status>,
    #[param(schema_with = kind_schema)]
    kind: Option<String>,
    /// Only tasks with a job whose last failure has this code
    code: Option<ErrorCode>,
    /// Only tasks of this owner; for another owner than the caller's, send `Safelight-Owner` too
    owner: Option<String>,
    /// Only tasks accepted before this time (RFC 3339)
    created_before: Option<DateTime<Utc>>,
    /// Only tasks accepted at this time or later (RFC 3339)
    created_after: Option<DateTime<Utc>>,
}

/// Takes the filter out of a query, narrowed to what the caller may see.
pub fn from_params(caller: &Caller, params: &mut Params) -> Result<TaskFilter, Problem> {
    let (kind, job_kind) = match params.take("kind")? {
        None => (None, None),
        Some(name) => kinds(&name)?,
    };
    Ok(TaskFilter {
        status: params.parse("status")?,
        kind,
        job_kind,
        code: params.parse("code")?,
        owner: owner(caller, params)?,
        created_before: time(params, "created_before")?,
        created_after: time(params, "created_after")?,
    })
}

fn owner(caller: &Caller, params: &mut Params) -> Result<Option<Owner>, Problem> {
    let Some(name) = params.take("owner")? else { return Ok(caller.sees().cloned()) };
    let owner: Owner = name.parse().map_err(|error| invalid_query("owner", error))?;
    if caller.may_see(&owner) {
        return Ok(Some(owner));
    }
    let problem = if caller.has(Scope::Admin) {
        Problem::new(ProblemCode::ScopeMissing, "The key is another owner's.")
    } else {
        scope_missing(Scope::Admin, &[Scope::Admin])
    };
    Err(problem.hint("an admin names an owner with the header `Safelight-Owner`"))
}

fn time(params: &mut Params, name: &str) -> Result<Option<DateTime<Utc>>, Problem> {
    let Some(text) = params.take(name)? else { return Ok(None) };
    let no_time = |_| invalid_query(name, "must be a time such as 2026-11-23T12:00:00Z");
    text.parse().map(Some).map_err(no_time)
}

/// A kind of task or a kind of job. A name of both is a kind of task, which has one job of that kind.
fn kinds(name: &str) -> Result<(Option<TaskKind>, Option<JobKind>), Problem> {
    match (name.parse(), name.parse()) {
        (Ok(kind), _) => Ok((Some(kind), None)),
        (_, Ok(kind)) => Ok((None, Some(kind))),
        (Err(_), Err(_)) => {
            let (name, known) = (name.escape_debug(), kind_names().join(", "));
            Err(invalid_query("kind", format!("unknown kind `{name}`, known: {known}")))
        }
    }
}

/// The names of all kinds of tasks, and of those kinds of jobs that no task has the name of.
fn kind_names() -> Vec<&'static str> {
    let mut names: Vec<_> = TaskKind::ALL.iter().map(|kind| kind.as_str()).collect();
    for kind in JobKind::ALL {
        if !names.contains(&kind.as_str()) {
            names.push(kind.as_str());
        }
    }
    names
}

/// The description of `kind`. That of a field is dropped beside a schema.
const KIND: &str = "Only tasks of this kind (`upload`, `rendition`, `backfill`, `verify`, `delete`), or tasks \
    with a job of this kind (`write`, `thumbnail`); if `status` is given, the job must have that status";

fn kind_schema() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(KIND))
        .enum_values(Some(kind_names()))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_names_every_kind() {
        let task_kinds = TaskKind::ALL.iter().map(|kind| kind.as_str());
        for name in task_kinds.chain(JobKind::ALL.iter().map(|kind| kind.as_str())) {
            assert!(KIND.contains(&format!("`{name}`")), "{name} is missing");
        }
    }

    #[test]
    fn unknown_kind_is_told_each_known_one_once() {
        let names = kind_names();
        assert_eq!(
            names,
            ["upload", "rendition", "backfill", "verify", "delete", "write", "thumbnail"]
        );
    }
}
