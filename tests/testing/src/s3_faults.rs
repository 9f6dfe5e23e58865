//! An HTTP proxy in front of the private S3 server. A plan decides for each request which fault it meets.

use std::{
    convert::Infallible,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Method, Request, Response,
    body::{Frame, Incoming},
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use tokio::{net::TcpListener, runtime::Runtime};

use crate::s3::S3;

/// The number of bytes that [`S3Fault::WrongBytes`] overwrites.
const WRONG_BYTES: usize = 4096;

/// A request for an object, or for the list of a bucket.
#[derive(Debug, Clone)]
pub struct S3Request {
    /// Its method.
    pub method: Method,
    /// The key; empty for requests about the bucket.
    pub key: String,
    /// Its number since the plan was set, from 0.
    pub number: u64,
}

impl S3Request {
    /// Whether it reads an object.
    pub fn is_read(&self) -> bool {
        !self.key.is_empty() && (self.method == Method::GET || self.method == Method::HEAD)
    }

    /// Whether it reads the content of an object, not only its size.
    pub fn is_get(&self) -> bool {
        !self.key.is_empty() && self.method == Method::GET
    }

    /// Whether it writes an object under this prefix.
    pub fn is_put(&self, prefix: &str) -> bool {
        self.method == Method::PUT && self.key.starts_with(prefix)
    }
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3Fault {
    /// It reaches the store, and its response the client.
    None,
    /// It is answered with a status and an error code of S3.
    Error(u16, &'static str),
    /// Its response has the right length, and zeros in the middle.
    WrongBytes,
    /// Its response ends after half of its content.
    Truncated,
    /// The store acknowledges the object, and loses it.
    Lost,
    /// The store acknowledges the object, and keeps only half of it.
    Cut,
}

type Plan = Arc<dyn Fn(&S3Request) -> S3Fault + Send + Sync>;

type Body = StreamBody<stream::Iter<std::vec::IntoIter<io::Result<Frame<Bytes>>>>>;

/// A running proxy. It has its own thread, so it is independent of the caller's runtime.
pub struct S3Faults {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

struct Shared {
    store: String,
    bucket: PathBuf,
    client: reqwest::Client,
    plan: Mutex<Plan>,
    count: AtomicU64,
}

impl S3Faults {
    /// Listens on a free port in front of `store`. Clients must use [`S3Faults::endpoint`], because the host is
    /// part of what they sign.
    pub fn start(store: &S3) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("s3-faults")
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            store: store.endpoint(),
            bucket: store.bucket_folder(),
            client: reqwest::Client::new(),
            plan: Mutex::new(Arc::new(|_| S3Fault::None)),
            count: AtomicU64::new(0),
        });
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, runtime: Some(runtime) })
    }

    /// The URL of the proxy for `AWS_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Decides about all requests from now on.
    pub fn set(&self, plan: impl Fn(&S3Request) -> S3Fault + Send + Sync + 'static) {
        *self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(plan);
        self.shared.count.store(0, Ordering::Relaxed);
    }

    /// Ends all faults.
    pub fn clear(&self) {
        self.set(|_| S3Fault::None);
    }

    /// The number of requests since the plan was set.
    pub fn requests(&self) -> u64 {
        self.shared.count.load(Ordering::Relaxed)
    }
}

impl Drop for S3Faults {
    fn drop(&mut self) {
        // A runtime must not block on the shutdown of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let _ = socket.set_nodelay(true);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&shared), request));
            let http = Builder::new(TokioExecutor::new());
            let _ = http.serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    // Path style: /bucket/key.
    let key = request.uri().path().splitn(3, '/').nth(2).unwrap_or_default().to_owned();
    let number = shared.count.fetch_add(1, Ordering::Relaxed);
    let seen = S3Request { method: request.method().clone(), key, number };
    let plan = Arc::clone(&shared.plan.lock().unwrap_or_else(PoisonError::into_inner));
    let fault = plan(&seen);
    if let S3Fault::Error(status, code) = fault {
        return Ok(error(status, code, &seen.method));
    }
    match forward(&shared, request).await {
        Ok(response) => Ok(damage(response, fault, &shared.bucket.join(&seen.key))),
        Err(_) => Ok(error(502, "BadGateway", &seen.method)),
    }
}

/// Sends the request to the store. Its headers stay as they are, because they are signed.
async fn forward(shared: &Shared, request: Request<Incoming>) -> Result<Response<Bytes>> {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query().context("a path")?;
    let mut headers = head.headers;
    for hop in [CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH] {
        headers.remove(hop);
    }
    let body = body.collect().await?.to_bytes();
    let request = shared.client.request(head.method, format!("{}{target}", shared.store));
    let answer = request.headers(headers).body(body).send().await?;
    let mut response = Response::builder().status(answer.status());
    if let Some(copied) = response.headers_mut() {
        copied.clone_from(answer.headers());
        copied.remove(TRANSFER_ENCODING);
        copied.remove(CONNECTION);
    }
    Ok(response.body(answer.bytes().await?)?)
}

/// Changes a response, or what was stored, as the fault says.
fn damage(response: Response<Bytes>, fault: S3Fault, object: &Path) -> Response<Body> {
    let is_ok = response.status().is_success();
    response.map(|content| {
        let (mut content, half) = (content.to_vec(), content.len() / 2);
        match fault {
            S3Fault::WrongBytes if is_ok => {
                let end = content.len().min(half + WRONG_BYTES);
                content[half..end].fill(0);
            }
            S3Fault::Truncated if is_ok && half > 0 => {
                content.truncate(half);
                let cut = io::Error::new(io::ErrorKind::ConnectionReset, "cut by the test");
                return body(vec![Ok(Frame::data(content.into())), Err(cut)]);
            }
            S3Fault::Lost if is_ok => {
                let _ = fs::remove_file(object);
            }
            S3Fault::Cut if is_ok => {
                let file = fs::File::options().write(true).open(object);
                let _ = file.and_then(|file| file.set_len(file.metadata()?.len() / 2));
            }
            _ => {}
        }
        body(vec![Ok(Frame::data(content.into()))])
    })
}

fn body(frames: Vec<io::Result<Frame<Bytes>>>) -> Body {
    StreamBody::new(stream::iter(frames))
}

/// An error as S3 reports it.
fn error(status: u16, code: &str, method: &Method) -> Response<Body> {
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code>\
         <Message>by the test</Message></Error>"
    );
    let content = if *method == Method::HEAD { Vec::new() } else { xml.into_bytes() };
    let mut response = Response::new(body(vec![Ok(Frame::data(content.into()))]));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    let xml = hyper::header::HeaderValue::from_static("application/xml");
    response.headers_mut().insert(CONTENT_TYPE, xml);
    response
}

#[cfg(test)]
mod tests {
    use safelight_blobs::{BlobKey, BlobLocation, Blobs};
    use safelight_domain::ImageId;

    use super::*;

    /// A store behind a proxy, and the proxy.
    fn store() -> Result<(S3, S3Faults, Blobs, tempfile::TempDir)> {
        let s3 = S3::start("images")?;
        let faults = S3Faults::start(&s3)?;
        let mut env = s3.env();
        env.push(("AWS_ENDPOINT".to_owned(), faults.endpoint()));
        let spool = tempfile::tempdir()?;
        let location = BlobLocation::Bucket { bucket: "images".to_owned(), prefix: String::new() };
        let blobs = Blobs::open_from(&location, spool.path(), env)?;
        Ok((s3, faults, blobs, spool))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_fault_does_what_its_name_says() -> Result<()> {
        let (_s3, faults, blobs, _spool) = store()?;
        let key = BlobKey::Incoming(ImageId::new());
        let content = Bytes::from(vec![7; 20_000]);
        blobs.put(&key, content.clone()).await?;
        assert_eq!(blobs.read(&key, 20_000).await?, content);

        faults.set(|request| if request.is_get() { S3Fault::WrongBytes } else { S3Fault::None });
        let wrong = blobs.read(&key, 20_000).await?;
        assert_eq!((wrong.len(), wrong == content), (20_000, false));
        faults.set(|_| S3Fault::Truncated);
        assert!(blobs.read(&key, 20_000).await.is_err());
        faults.set(|_| S3Fault::Error(404, "NoSuchKey"));
        assert!(matches!(blobs.size(&key).await, Ok(None)));

        for (fault, expected) in [(S3Fault::Cut, Some(10_000)), (S3Fault::Lost, None)] {
            faults.set(
                move |request| if request.is_put("incoming/") { fault } else { S3Fault::None },
            );
            blobs.put(&key, content.clone()).await?;
            faults.clear();
            assert_eq!(blobs.size(&key).await?, expected, "{fault:?}");
        }
        Ok(())
    }
}
