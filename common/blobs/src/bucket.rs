//! A bucket that is not Safelight's own, to take pictures from. Its keys are any text: they are listed, and
//! where `object_store` has no path for one (`a//b`) also read, by plain requests that it signs.

use std::{error::Error, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt};
use object_store::{
    ClientOptions, ObjectStoreExt, StaticCredentialProvider,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer, AwsCredential},
    client::{
        HttpClient, HttpConnector, HttpRequest, HttpRequestBody, HttpResponse, ReqwestConnector,
    },
    path::Path,
    signer::{Method, Signer},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;

use super::{
    BlobError, BlobStream,
    store::{environment, s3_from},
};

/// Keys that a store lists at once at most.
const PAGE: usize = 1000;

/// What a request's signature leaves as it is; in a key also the `/`.
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const IN_PATH: &AsciiSet = &IN_QUERY.remove(b'/');

/// A bucket, reached as the `AWS_*` variables say. Only read.
pub struct Bucket {
    s3: AmazonS3,
    http: HttpClient,
    /// Where it is, without a `/` at the end.
    url: String,
    region: String,
    is_public: bool,
    requester_pays: bool,
}

/// An object that was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key, as it is.
    pub key: String,
    /// How many bytes it has.
    pub bytes: u64,
}

impl Listed {
    /// Whether it only marks a folder, as consoles make them.
    pub fn is_folder(&self) -> bool {
        self.bytes == 0 && self.key.ends_with('/')
    }
}

/// The answer to `ListObjectsV2`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    contents: Vec<Object>,
    #[serde(default)]
    is_truncated: bool,
    encoding_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Object {
    key: String,
    size: u64,
}

impl Bucket {
    /// The bucket `name`. Does not contact it.
    pub async fn open(name: &str) -> Result<Self, BlobError> {
        Self::reached_by(s3_from(environment()), name).await
    }

    /// [`Bucket::open`] with the `AWS_*` variables taken from `env`.
    pub async fn open_from(
        name: &str,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, BlobError> {
        Self::reached_by(s3_from(env), name).await
    }

    async fn reached_by(s3: AmazonS3Builder, name: &str) -> Result<Self, BlobError> {
        let options = ClientOptions::new().with_allow_http(true);
        let s3 = s3.with_bucket_name(name).with_client_options(options.clone());
        let is_set =
            |key| s3.get_config_value(&key).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let region = s3.get_config_value(&AmazonS3ConfigKey::Region);
        Ok(Self {
            http: ReqwestConnector::default().connect(&options)?,
            url: url_of(s3.clone()).await?,
            region: region.unwrap_or_else(|| "us-east-1".to_owned()),
            is_public: is_set(AmazonS3ConfigKey::SkipSignature),
            requester_pays: is_set(AmazonS3ConfigKey::RequestPayer),
            s3: s3.build()?,
        })
    }

    /// The first `limit` objects, in the order of their keys, whose keys begin with `prefix` and come
    /// after `after`; fewer only if there are no more.
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BlobError> {
        let mut found = Vec::<Listed>::new();
        while found.len() < limit {
            let after = found.last().map(|last| last.key.as_str()).or(after);
            let (page, is_last) =
                self.list_page(prefix, after, (limit - found.len()).min(PAGE)).await?;
            let is_last = is_last || page.is_empty();
            found.extend(page);
            if is_last {
                break;
            }
        }
        Ok(found)
    }

    /// What one request lists, and whether that was all.
    async fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Listed>, bool), BlobError> {
        let mut url = format!("{}?list-type=2&max-keys={limit}", self.url);
        for (name, value) in [("prefix", Some(prefix)), ("start-after", after)] {
            if let Some(value) = value {
                url.extend(["&", name, "="]);
                url.extend(utf8_percent_encode(value, IN_QUERY));
            }
        }
        let answer = match self.list_url(&url).await? {
            Ok(answer) => answer,
            // A key may hold characters that XML cannot.
            Err(_) => self.list_url(&format!("{url}&encoding-type=url")).await?.map_err(broken)?,
        };
        let encoded = answer.encoding_type.as_deref() == Some("url");
        let key = |key: String| if encoded { decoded(&key) } else { key };
        let objects = answer.contents.into_iter();
        let listed: Vec<_> =
            objects.map(|Object { key: k, size }| Listed { key: key(k), bytes: size }).collect();
        // Whoever asks for what comes after the last would never come to an end.
        if listed.first().is_some_and(|first| after.is_some_and(|after| *first.key <= *after)) {
            return Err(broken("the store lists its keys in no order"));
        }
        Ok((listed, !answer.is_truncated))
    }

    /// The answer to a request for a list, or why it cannot be read.
    async fn list_url(&self, url: &str) -> Result<Result<Answer, quick_xml::DeError>, BlobError> {
        let answer = self.get(url).await?.into_body().bytes().await.map_err(broken)?;
        Ok(quick_xml::de::from_reader(answer.as_ref()))
    }

    /// Streams an object.
    pub async fn read(&self, key: &str) -> Result<BlobStream, BlobError> {
        match Path::parse(key) {
            // This way a stream that breaks is taken up again.
            Ok(path) if path.as_ref() == key => {
                Ok(self.s3.get(&path).await?.into_stream().map_err(BlobError::from).boxed())
            }
            // Whatever sends this would tidy it up to the name of another object.
            Err(error) if key.split('/').any(|part| matches!(part, "." | "..")) => {
                Err(object_store::Error::from(error).into())
            }
            _ => {
                let path = utf8_percent_encode(key, IN_PATH);
                let answer = self.get(&format!("{}/{path}", self.url)).await?;
                Ok(answer.into_body().bytes_stream().map_err(broken).boxed())
            }
        }
    }

    /// A signed GET, if it was answered with success.
    async fn get(&self, url: &str) -> Result<HttpResponse, BlobError> {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.parse().map_err(broken)?;
        if !self.is_public {
            let credential = self.s3.credentials().get_credential().await?;
            AwsAuthorizer::new(&credential, "s3", &self.region)
                .with_request_payer(self.requester_pays)
                .try_authorize(&mut request, None)?;
        }
        let answer = self.http.execute(request).await.map_err(broken)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let why = answer.into_body().bytes().await.unwrap_or_default();
        Err(broken(format!("{status}: {}", String::from_utf8_lossy(&why))))
    }
}

/// Where a bucket is: `object_store` says so in a signature, for which any key will do.
async fn url_of(s3: AmazonS3Builder) -> Result<String, BlobError> {
    let key = AwsCredential { key_id: "-".to_owned(), secret_key: "-".to_owned(), token: None };
    let s3 = s3.with_credentials(Arc::new(StaticCredentialProvider::new(key))).build()?;
    let mut url = s3.signed_url(Method::GET, &Path::ROOT, Duration::from_secs(1)).await?;
    url.set_query(None);
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// A key as `encoding-type=url` writes it: a space may be a plus.
fn decoded(key: &str) -> String {
    percent_decode_str(&key.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// A request that failed, or an answer that makes no sense.
fn broken(error: impl Into<Box<dyn Error + Send + Sync>>) -> BlobError {
    BlobError::from(object_store::Error::Generic { store: "S3", source: error.into() })
}
