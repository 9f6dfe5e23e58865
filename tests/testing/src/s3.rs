//! A private S3 server in this process, with a temporary folder.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
};

use anyhow::{Context, Result, anyhow};
use hyper::{
    Method, Request,
    body::Incoming,
    service::{Service as HyperService, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot};

const ACCESS_KEY: &str = "safelight";
const SECRET_KEY: &str = "safelight-secret";

/// A running S3 server with one bucket. It has its own threads, so it is independent of the caller's
/// runtime, and it can be stopped abruptly like a machine that loses power.
pub struct S3 {
    folder: TempDir,
    bucket: String,
    address: SocketAddr,
    requests: Requests,
    running: Option<Running>,
}

/// The requests to a server, by what they do. Clones are the same.
#[derive(Clone, Default)]
struct Requests(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Requests {
    fn count<T>(&self, request: &Request<T>) {
        let asks = |word| request.uri().query().is_some_and(|query| query.contains(word));
        let name = match *request.method() {
            Method::PUT if request.headers().contains_key("x-amz-copy-source") => "copy",
            Method::PUT | Method::POST => "put",
            Method::GET if asks("list-type=") => "list",
            Method::GET => "get",
            Method::HEAD => "head",
            Method::DELETE => "delete",
            _ => "other",
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
    }
}

struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl S3 {
    /// Starts a server on a free port with one empty bucket.
    pub fn start(bucket: &str) -> Result<Self> {
        // Its HTTP clients are in this process.
        safelight_client::install_crypto_provider();
        let folder = tempfile::Builder::new().prefix("safelight-s3-").tempdir()?;
        std::fs::create_dir(folder.path().join(bucket))?;
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let requests = Requests::default();
        let (address, running) = run(folder.path().to_owned(), free, requests.clone())?;
        Ok(Self { folder, bucket: bucket.to_owned(), address, requests, running: Some(running) })
    }

    /// Cuts all connections and stops listening. Keeps the stored objects.
    pub fn stop(&mut self) {
        if let Some(Running { stop, thread }) = self.running.take() {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }

    /// Listens again on the same port after [`S3::stop`].
    pub fn resume(&mut self) -> Result<()> {
        self.stop();
        let requests = self.requests.clone();
        self.running = Some(run(self.folder.path().to_owned(), self.address, requests)?.1);
        Ok(())
    }

    /// The number of requests so far by what they do: `put` (also of parts), `copy`, `get`, `head`, `list`, `delete`.
    pub fn requests(&self) -> BTreeMap<&'static str, u64> {
        self.requests.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The URL of the server for `AWS_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The URL of the bucket for `SAFELIGHT_BLOB_URL`.
    pub fn url(&self) -> String {
        format!("s3://{}", self.bucket)
    }

    /// The folder that contains the objects of the bucket by key.
    pub fn bucket_folder(&self) -> PathBuf {
        self.folder.path().join(&self.bucket)
    }

    /// The variables with which clients find the server and authenticate.
    pub fn env(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT", self.endpoint().as_str()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "false"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Serves `folder` on `address` in a new thread; returns when it listens.
fn run(folder: PathBuf, address: SocketAddr, requests: Requests) -> Result<(SocketAddr, Running)> {
    let files = FileSystem::new(folder).map_err(|error| anyhow!("S3 folder: {error:?}"))?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = builder.build();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("s3")
        .enable_all()
        .build()?;
    let (stop, stopped) = oneshot::channel();
    let (ready, listening) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        runtime.block_on(async {
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    let _ = ready.send(listener.local_addr());
                    tokio::select! {
                        () = accept(&listener, &service, &requests) => {}
                        _ = stopped => {}
                    }
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        });
        // Connections are tasks of this runtime, so this cuts them.
        runtime.shutdown_background();
    });
    let address = listening.recv().context("the S3 server died")?.context("the S3 port")?;
    Ok((address, Running { stop, thread }))
}

async fn accept(listener: &TcpListener, service: &S3Service, requests: &Requests) {
    let http = Builder::new(TokioExecutor::new());
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        // Otherwise every response waits 40 ms for the client's delayed acknowledgement.
        let _ = socket.set_nodelay(true);
        let (service, requests) = (service.clone(), requests.clone());
        let counted = service_fn(move |request: Request<Incoming>| {
            requests.count(&request);
            HyperService::call(&service, request)
        });
        let connection = http.serve_connection(TokioIo::new(socket), counted).into_owned();
        tokio::spawn(async move {
            let _ = connection.await;
        });
    }
}
