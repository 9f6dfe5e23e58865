//! What a client may ask of a backfill, and whether this server can do it.

use chrono::{DateTime, Datelike, Utc};
use safelight_config::{Config, QueueUrl, import_roots};
use safelight_domain::{
    BackfillKind, BackfillSpec, ImageFormat, Quota, TakeBack, TaskId, Visibility,
};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::{
    http::problem::{Problem, ProblemCode},
    presets::CurrentPresets,
};

/// Images per second that a rate may name; more is no limit.
const MAX_RATE: f64 = 1_000_000.0;

/// How far the clock of a client that chooses an id may be off. Lists show tasks in the order of their ids.
const ID_SKEW_SECONDS: u64 = 300;

/// Which images renditions are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = BackfillScope)]
pub enum Scope {
    /// Those that lack one.
    #[default]
    Missing,
    /// All images.
    All,
}

/// What is moved back from the quarantine: everything (`true`), or what one collection moved there (its id).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "true, or the id of a collection")]
#[schema(as = BackfillTakeBack)]
pub enum TakeBackRequest {
    /// Everything; `false` is the same as no such field.
    All(bool),
    /// What this collection moved there.
    Run(TaskId),
}

/// A backfill to start.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = BackfillRequest)]
pub struct BackfillRequest {
    /// The task's id, chosen by the client so that it can safely repeat the request: a `UUIDv7` made within
    /// the last few minutes.
    pub id: Option<TaskId>,
    /// What the backfill does.
    pub kind: BackfillKind,
    /// `renditions`: only these presets; if empty, all configured presets.
    #[serde(default)]
    pub presets: Vec<String>,
    /// `renditions`: which images to include.
    pub scope: Option<Scope>,
    /// `renditions`, `verify`: only images accepted at this time or later.
    pub created_after: Option<DateTime<Utc>>,
    /// `renditions`, `verify`: only originals of this format.
    pub format: Option<ImageFormat>,
    /// `import`: the absolute path of a folder or of a file with a path per line (NDJSON), as the workers see
    /// it; or `s3://BUCKET/PREFIX`.
    #[schema(example = "/mnt/photos")]
    pub source: Option<String>,
    /// `import`: who may read the bytes of the imported images; the default is that of uploads.
    pub visibility: Option<Visibility>,
    /// Only count images, change nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// The maximum number of images started per second; for `gc`, of objects removed per second.
    #[schema(minimum = 0.001, maximum = 1_000_000.0)]
    pub rate: Option<f64>,
    /// All kinds except `gc`: the maximum number of images in progress; the server's `backfill_window` is the
    /// upper limit.
    #[schema(minimum = 1)]
    pub concurrency: Option<u32>,
    /// Include images that failed permanently before; for `import`, also files that are identical to such
    /// images.
    #[serde(default)]
    pub retry_failed: bool,
    /// `gc`: collect although the database knows no image, is an older copy, or does not know more than a tenth
    /// of the stored originals.
    #[serde(default)]
    pub force: bool,
    /// `gc`: undo collections instead, by moving objects back from the quarantine: `true` for everything in it,
    /// or the id of one collection.
    pub take_back: Option<TakeBackRequest>,
}

impl BackfillRequest {
    /// What to do, if this server can: an import stores no more than `quota`.
    pub fn check(
        self,
        config: &Config,
        presets: &CurrentPresets,
        quota: Quota,
    ) -> Result<BackfillSpec, Problem> {
        self.check_id()?;
        self.check_belonging()?;
        if let Some(unknown) = self.presets.iter().find(|name| !presets.has(name)) {
            let known: Vec<_> = presets.names().collect();
            let why = format!("there is no preset `{}`", unknown.escape_debug());
            return Err(invalid("presets", &why).hint(format!("there are: {}", known.join(", "))));
        }
        if self.rate.is_some_and(|rate| !(0.001..=MAX_RATE).contains(&rate)) {
            return Err(invalid("rate", "must be 0.001 to 1000000 images per second"));
        }
        // Years that both databases can compare with.
        if self.created_after.is_some_and(|time| !(0..=9999).contains(&time.year())) {
            return Err(invalid("created_after", "must be in the years 0 to 9999"));
        }
        if self.concurrency == Some(0) {
            return Err(invalid("concurrency", "must be at least 1"));
        }
        let import = self.kind == BackfillKind::Import;
        let take_back = self.take_back();
        let source = if import { Some(source(config, self.source)?) } else { None };
        let roots = source.as_deref().map(|at| import_roots::of_import(&config.import_roots, at));
        Ok(BackfillSpec {
            kind: self.kind,
            presets: self.presets,
            all: self.scope == Some(Scope::All),
            created_after: self.created_after,
            format: self.format,
            source,
            roots: roots.unwrap_or_default(),
            visibility: import.then(|| self.visibility.unwrap_or(config.default_visibility)),
            quota: if import { quota } else { Quota::default() },
            dry_run: self.dry_run,
            rate: self.rate,
            concurrency: self.concurrency,
            retry_failed: self.retry_failed,
            force: self.force,
            take_back,
        })
    }

    fn take_back(&self) -> Option<TakeBack> {
        match self.take_back? {
            TakeBackRequest::All(all) => all.then_some(TakeBack::All),
            TakeBackRequest::Run(run) => Some(TakeBack::Run(run)),
        }
    }

    fn check_id(&self) -> Result<(), Problem> {
        let Some(id) = self.id else { return Ok(()) };
        let made = id.0.get_timestamp().map(|at| at.to_unix().0);
        let now = u64::try_from(Utc::now().timestamp()).unwrap_or(0);
        let is_of_now = made.is_some_and(|made| made.abs_diff(now) <= ID_SKEW_SECONDS);
        if id.0.get_version_num() != 7 || !is_of_now {
            return Err(invalid(
                "id",
                "must be a UUIDv7 that was made within the last few minutes",
            ));
        }
        Ok(())
    }

    /// Rejects fields that have no meaning for the kind: a client that sends one expects an effect.
    fn check_belonging(&self) -> Result<(), Problem> {
        let (renditions, import) =
            (self.kind == BackfillKind::Renditions, self.kind == BackfillKind::Import);
        let images = renditions || self.kind == BackfillKind::Verify;
        let gc = self.kind == BackfillKind::Gc;
        for (field, given, belongs) in [
            ("presets", !self.presets.is_empty(), renditions),
            ("scope", self.scope.is_some(), renditions),
            ("created_after", self.created_after.is_some(), images),
            ("format", self.format.is_some(), images),
            ("retry_failed", self.retry_failed, images || import),
            ("source", self.source.is_some(), import),
            ("visibility", self.visibility.is_some(), import),
            ("concurrency", self.concurrency.is_some(), images || import),
            ("force", self.force, gc),
            ("take_back", self.take_back().is_some(), gc),
        ] {
            if given && !belongs {
                return Err(invalid(field, &format!("has no meaning for `{}`", self.kind)));
            }
        }
        if self.force && self.take_back().is_some() {
            return Err(invalid("force", "has no meaning with `take_back`, which removes nothing"));
        }
        Ok(())
    }
}

/// The source of an import, if it may be read.
fn source(config: &Config, source: Option<String>) -> Result<String, Problem> {
    let Some(source) = source else {
        return Err(invalid("source", "an import needs one"));
    };
    if !source.starts_with('/') && !source.starts_with("s3://") {
        return Err(invalid("source", "must be an absolute path or s3://BUCKET/PREFIX"));
    }
    if source.contains('\0') {
        return Err(invalid("source", "no path has a NUL in it"));
    }
    if source.strip_prefix("s3://").is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        return Err(invalid("source", "names no bucket"));
    }
    let open_to_all = config.import_roots.is_empty() && config.is_for_this_machine();
    // In a fleet only the workers need access to it, and a path that is missing here cannot be resolved.
    let is_elsewhere = config.queue_url != QueueUrl::Embedded
        && !source.starts_with("s3://")
        && std::fs::metadata(&source).is_err();
    if !open_to_all && (is_elsewhere || !import_roots::contain(&config.import_roots, &source)) {
        return Err(Problem::new(
            ProblemCode::SourceForbidden,
            "The source is in none of the folders and buckets that imports may read.",
        )
        .hint(
            "name it in `import_roots`, and make sure that this node can read it as the workers do",
        ));
    }
    let is_missing = config.queue_url == QueueUrl::Embedded && !source.starts_with("s3://");
    if is_missing && let Err(error) = std::fs::metadata(&source) {
        return Err(invalid("source", &format!("cannot be read: {}", error.kind())));
    }
    Ok(source)
}

fn invalid(field: &str, why: &str) -> Problem {
    Problem::new(ProblemCode::InvalidBody, format!("Field `{field}`: {why}."))
}
