//! Shared by all tests: an API over real parts in its own folder, and test images.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Request, StatusCode, header, request::Builder},
};
use http_body_util::BodyExt;
use safelight_api::{Api, ApiOptions, ApiParts};
use safelight_blobs::{BlobKey, BlobLocation, Blobs, StagedUpload};
use safelight_config::Config;
use safelight_domain::{
    ContentHash, Failure, Image, ImageFacts, ImageFormat, ImageId, JOB_VERSION, JobKind, JobNotice,
    Lane, Placeholder, Rendition, TaskId, WorkerId,
};
use safelight_queue::{InProcessQueue, OutboxSignal};
use safelight_store::{Claim, DynStore, Effect, Lease, Outcome, Settled};
use safelight_store_sql::SqliteStore;
use serde_json::Value;

/// How long [`eventually`] waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// An API node with its parts.
pub struct TestApp {
    pub parts: ApiParts,
    pub api: Api,
    folder: tempfile::TempDir,
}

/// A response with its whole body.
#[derive(Debug)]
pub struct TestResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl TestApp {
    /// With the default configuration.
    pub async fn new() -> Self {
        Self::with(&[], ApiOptions::default(), |store| store).await
    }

    /// With some configuration keys set.
    pub async fn configured(keys: &[(&str, &str)]) -> Self {
        Self::with(keys, ApiOptions::default(), |store| store).await
    }

    /// With configuration keys, options, and a wrapper around the store.
    pub async fn with(
        keys: &[(&str, &str)],
        options: ApiOptions,
        wrap: impl FnOnce(DynStore) -> DynStore,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = configuration(folder.path(), keys);
        let store = SqliteStore::open(&folder.path().join("safelight.db")).await.expect("SQLite");
        let store: DynStore = Arc::new(store);
        store.migrate().await.expect("a schema");
        let location = BlobLocation::Folder(folder.path().join("blobs"));
        let blobs = Blobs::open(&location, &folder.path().join("spool")).expect("a blob folder");
        let installation = store.installation().await.expect("an installation").id;
        blobs.mark(installation).await.expect("marked");
        let blobs = blobs.of_installation(installation);
        let parts = ApiParts {
            queue: Arc::new(InProcessQueue::new()),
            config: Arc::new(config),
            store: wrap(store),
            blobs,
            shared_cache: None,
            outbox_signal: OutboxSignal::default(),
            local_key: None,
        };
        let api = Api::new(parts.clone(), Arc::new(|| "metrics\n".to_owned()), options);
        Self { parts, api, folder }
    }

    /// Sends a request.
    pub async fn send(&self, request: Builder, body: impl Into<Body>) -> TestResponse {
        let request = request.body(body.into()).expect("a request");
        let response = self.api.answer(addressed(request)).await.expect("a response");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes().to_vec();
        TestResponse { status: parts.status, headers: parts.headers, body }
    }

    /// Gets a path.
    pub async fn get(&self, path: &str) -> TestResponse {
        self.send(Request::get(path), Body::empty()).await
    }

    /// Uploads bytes and expects them to be accepted.
    pub async fn upload(&self, bytes: impl Into<Body>) -> Value {
        let answer = self.send(Request::post("/v1/images"), bytes).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
        answer.json()
    }

    /// Names of the files of uploads that are being received.
    pub fn incoming(&self) -> Vec<String> {
        names(&self.folder.path().join("blobs/incoming"))
    }

    /// Hashes of the stored originals.
    pub fn originals(&self) -> Vec<String> {
        let shards = self.folder.path().join("blobs/blobs");
        names(&shards).iter().flat_map(|shard| names(&shards.join(shard))).collect()
    }

    /// Names of what a removal has moved aside.
    pub fn trash(&self) -> Vec<String> {
        names(&self.folder.path().join("blobs/trash"))
    }

    /// The file of an object in the blob folder.
    pub fn blob_file(&self, key: &BlobKey) -> PathBuf {
        self.folder.path().join("blobs").join(key.path().to_string())
    }

    /// Puts an empty folder in the place of the blob folder, as if its volume were not mounted; returns where the
    /// blob folder is meanwhile.
    pub fn unmount_blobs(&self) -> PathBuf {
        let (mounted, elsewhere) =
            (self.folder.path().join("blobs"), self.folder.path().join("volume"));
        std::fs::rename(&mounted, &elsewhere).expect("renamed");
        std::fs::create_dir(&mounted).expect("an empty folder");
        elsewhere
    }

    /// Puts the blob folder back.
    pub fn mount_blobs(&self, elsewhere: &Path) {
        let mounted = self.folder.path().join("blobs");
        std::fs::remove_dir_all(&mounted).expect("removed");
        std::fs::rename(elsewhere, mounted).expect("renamed");
    }

    /// Waits until no bytes are staged.
    pub async fn eventually_nothing_is_staged(&self) {
        eventually(async || self.incoming().is_empty()).await;
    }

    /// Claims a job of a task as a worker would.
    pub async fn claim(&self, task: TaskId, kind: JobKind) -> (Lease, Image) {
        self.try_claim(task, kind).await.expect("a job to claim")
    }

    async fn try_claim(&self, task: TaskId, kind: JobKind) -> Option<(Lease, Image)> {
        let jobs = self.parts.store.task(task).await.expect("a task").expect("some").jobs;
        let job = jobs.iter().find(|job| job.kind == kind).expect("a job of the kind");
        let notice = JobNotice {
            job: job.id,
            kind,
            lane: Lane::Interactive,
            generation: job.attempt,
            trace: None,
        };
        let lease = Duration::from_secs(30);
        match self.parts.store.claim(&notice, false, WorkerId::new(), lease, JOB_VERSION).await {
            Ok(Claim::Run(claimed)) => Some((claimed.lease, claimed.image)),
            Ok(Claim::Nothing) => None,
            other => panic!("not claimed: {other:?}"),
        }
    }

    /// Ends an attempt.
    pub async fn settle(&self, lease: Lease, outcome: Outcome) {
        let settled = self.parts.store.settle(&lease, &outcome).await.expect("settled");
        assert_eq!(settled, Settled::Applied);
    }

    /// Runs the write job.
    pub async fn write(&self, task: TaskId) -> Image {
        self.write_turned(task, 1).await
    }

    /// Runs the write job, for an original of 30 × 20 pixels with this EXIF orientation.
    pub async fn write_turned(&self, task: TaskId, orientation: u8) -> Image {
        let (lease, image) = self.claim(task, JobKind::Write).await;
        let staged = StagedUpload { image: image.id, sha256: image.sha256, bytes: image.bytes };
        self.parts.blobs.promote(&staged).await.expect("promoted");
        let facts = ImageFacts {
            format: image.format,
            width: 30,
            height: 20,
            orientation,
            taken_at: None,
            gps: None,
        };
        self.settle(lease, Outcome::Succeeded(vec![Effect::StoredBlob(facts)])).await;
        image
    }

    /// Runs the thumbnail job, with `bytes` as the rendition of every preset.
    pub async fn render(&self, task: TaskId, bytes: &'static [u8]) {
        let (lease, image) = self.claim(task, JobKind::Thumbnail).await;
        let mut made = Vec::new();
        for name in self.parts.config.presets.keys() {
            let rendition = self.rendition(name, ImageFormat::Jpeg, bytes);
            let key = BlobKey::rendition(image.sha256, &rendition);
            self.parts.blobs.put(&key, bytes.into()).await.expect("stored");
            made.push(rendition);
        }
        let placeholder =
            Placeholder { thumbhash: vec![1, 7, 18, 29, 254], dominant_color: [0, 17, 255] };
        let rendered = Outcome::Succeeded(vec![
            Effect::UpsertRenditions(made),
            Effect::Placeholder(placeholder),
        ]);
        self.settle(lease, rendered).await;
    }

    /// A rendition as a worker records it.
    pub fn rendition(&self, preset: &str, format: ImageFormat, bytes: &[u8]) -> Rendition {
        Rendition {
            preset: preset.to_owned(),
            fingerprint: self.parts.config.presets[preset].fingerprint(),
            format,
            width: 3,
            height: 2,
            bytes: bytes.len() as u64,
            sha256: ContentHash::of(bytes),
            made_at: None,
        }
    }

    /// Runs the database part of the delete job, once it is due.
    pub async fn remove(&self, task: TaskId) {
        let mut lease = None;
        eventually(async || {
            lease = self.try_claim(task, JobKind::Delete).await.map(|(lease, _)| lease);
            lease.is_some()
        })
        .await;
        self.settle(
            lease.expect("claimed"),
            Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 2 }]),
        )
        .await;
    }

    /// Fails a job for good.
    pub async fn fail(&self, task: TaskId, kind: JobKind, failure: Failure) {
        let (lease, _) = self.claim(task, kind).await;
        self.settle(lease, Outcome::Failed(failure)).await;
    }
}

impl TestResponse {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header as text; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// Asserts that this is a complete problem document.
    pub fn assert_problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["type"], format!("urn:safelight:problem:{code}"));
        assert_eq!(problem["status"], status);
        for member in ["title", "detail", "instance"] {
            assert!(problem[member].is_string(), "{member} is missing: {problem}");
        }
        assert!(problem["retryable"].is_boolean());
        let retry_after = matches!(status, 429 | 503) || code == "idempotency_key_in_flight";
        assert_eq!(self.headers.contains_key("retry-after"), retry_after, "{problem}");
        problem
    }
}

fn configuration(folder: &Path, keys: &[(&str, &str)]) -> Config {
    let data_dir = ("SAFELIGHT_DATA_DIR".to_owned(), folder.display().to_string());
    let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    safelight_config::load_from(None, keys.chain([data_dir])).expect("a configuration")
}

/// The request with the host that every client names, unless it names one.
pub fn addressed<B>(mut request: Request<B>) -> Request<B> {
    request.headers_mut().entry(header::HOST).or_insert(HeaderValue::from_static("localhost"));
    request
}

/// Waits until a condition is met, for at most [`PATIENCE`].
pub async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let met = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, met).await.expect("the condition is met in time");
}

/// `bytes` bytes that start like a PNG. Another `seed` gives other bytes.
pub fn fake_png(bytes: usize, seed: u8) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    png.resize(bytes, seed);
    png
}

/// The id in a document.
pub fn task_id(document: &Value) -> TaskId {
    document["id"].as_str().expect("an id").parse().expect("a task's id")
}

/// The image's id in a task document.
pub fn image_id(document: &Value) -> ImageId {
    document["image"]["id"].as_str().expect("an id").parse().expect("an image's id")
}

/// The boundary of [`multipart`].
pub const BOUNDARY: &str = "XyZ";

/// A multipart body of parts: headers after `form-data; `, and content.
pub fn multipart(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (disposition, content) in parts {
        let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

/// A request for a multipart upload.
pub fn multipart_request() -> Builder {
    Request::post("/v1/images")
        .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
}

/// The names in a folder; none if it does not exist.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}
