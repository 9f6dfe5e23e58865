use std::{net::IpAddr, time::Duration};

use bytes::Bytes;
use reqwest::{
    Method, RequestBuilder, Response,
    header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{error::ClientError, retry::Retries};

/// The header by which an administrator acts for another owner.
const ON_BEHALF: HeaderName = HeaderName::from_static("safelight-owner");

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a request may take by default: longer than a server delays a response (`Prefer: wait=60`).
const TIMEOUT: Duration = Duration::from_secs(70);

/// Calls one server. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    tries: u32,
}

/// What a [`Client`] sends, its tries and its timeout.
pub struct ClientBuilder {
    url: String,
    key: Option<String>,
    on_behalf_of: Option<String>,
    tries: u32,
    timeout: Option<Duration>,
}

impl Client {
    /// A client of the server at `url`, such as `http://127.0.0.1:8080`, without a key, that makes each call
    /// once.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        Self::builder(url).build()
    }

    /// The same with a key.
    pub fn with_key(url: &str, secret: &str) -> Result<Self, ClientError> {
        Self::builder(url).key(secret.to_owned()).build()
    }

    /// Starts to configure a client of the server at `url`.
    pub fn builder(url: &str) -> ClientBuilder {
        ClientBuilder {
            url: url.to_owned(),
            key: None,
            on_behalf_of: None,
            tries: 1,
            timeout: Some(TIMEOUT),
        }
    }

    /// The same client with `tries` tries for each call that can be repeated.
    #[must_use]
    pub fn with_tries(&self, tries: u32) -> Self {
        Self { tries, ..self.clone() }
    }

    /// The address of a path, such as `/v1/images`.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// A request to a path, with the key.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.url(path))
    }

    /// `GET`; returns the response also if it is an error. Never retried.
    pub async fn get(&self, path: &str) -> Result<Response, ClientError> {
        let sent = self.request(Method::GET, path).send().await;
        sent.map_err(|error| ClientError::unreachable(&error))
    }

    /// `GET` of a JSON document.
    pub async fn json(&self, path: &str) -> Result<Value, ClientError> {
        self.call(|| self.request(Method::GET, path)).await
    }

    /// Makes a call whose repetition is harmless; returns the document of its answer.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<T, ClientError> {
        self.call_and_read(request, document).await
    }

    /// [`Client::call`] with `read` for the response. A failure to read it is retried as well.
    pub(crate) async fn call_and_read<T, F>(
        &self,
        request: impl Fn() -> RequestBuilder,
        read: fn(Response) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut retries = Retries::new(self.tries);
        loop {
            let done = match send(request()).await {
                Ok(response) => read(response).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(done) => return Ok(done),
                Err(error) => retries.after(error).await?,
            }
        }
    }

    pub(crate) fn tries(&self) -> u32 {
        self.tries
    }
}

impl ClientBuilder {
    /// Sends a key with each request.
    #[must_use]
    pub fn key(mut self, secret: impl Into<Option<String>>) -> Self {
        self.key = secret.into();
        self
    }

    /// Acts for this owner, or for all with `*`; needs a key with the scope `admin`.
    #[must_use]
    pub fn on_behalf_of(mut self, owner: impl Into<Option<String>>) -> Self {
        self.on_behalf_of = owner.into();
        self
    }

    /// How often a call is tried whose failure may be temporary, the first try included.
    #[must_use]
    pub fn tries(mut self, tries: u32) -> Self {
        self.tries = tries;
        self
    }

    /// How long a request may take, including its body and the response; `None` for no limit.
    #[must_use]
    pub fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// The client. Fails if the URL is not valid, or if the key or the owner cannot be a header value.
    pub fn build(self) -> Result<Client, ClientError> {
        let Ok(url) = reqwest::Url::parse(&self.url) else {
            return Err(ClientError::new(format!("`{}` is no URL", self.url)));
        };
        let mut headers = HeaderMap::new();
        if let Some(key) = self.key {
            let mut value = HeaderValue::try_from(format!("Bearer {key}"))
                .map_err(|_| ClientError::new("the key has characters that no key has"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        if let Some(owner) = self.on_behalf_of {
            let value = HeaderValue::try_from(owner)
                .map_err(|_| ClientError::new("the owner has characters that no owner has"))?;
            headers.insert(ON_BEHALF, value);
        }
        install_crypto_provider();
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("safelight/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers);
        if is_this_machine(&url) {
            // A proxy of the environment would get the key, and reach its own machine.
            http = http.no_proxy();
        }
        if let Some(timeout) = self.timeout {
            http = http.timeout(timeout);
        }
        let http = http.build().map_err(ClientError::new)?;
        Ok(Client { http, base: self.url.trim_end_matches('/').to_owned(), tries: self.tries })
    }
}

fn is_this_machine(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Installs the cryptography of rustls, because reqwest is built without any. May be called several times.
pub fn install_crypto_provider() {
    // Fails only if a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Sends a request; an error response is an error.
pub(crate) async fn send(request: RequestBuilder) -> Result<Response, ClientError> {
    let response = request.send().await.map_err(|error| ClientError::unreachable(&error))?;
    if response.status().is_success() {
        return Ok(response);
    }
    Err(ClientError::rejected(response).await)
}

/// The bytes of a response.
pub(crate) async fn body(response: Response) -> Result<Bytes, ClientError> {
    response.bytes().await.map_err(|error| ClientError::unreachable(&error))
}

pub(crate) async fn document<T: DeserializeOwned>(response: Response) -> Result<T, ClientError> {
    let bytes = body(response).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        ClientError::new(format!("the server's answer cannot be read: is it Safelight? {error}"))
    })
}
