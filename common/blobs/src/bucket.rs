//! A foreign bucket from which pictures are imported. Its keys can be any text. `object_store` has no path for
//! some of them (`a//b`), so this module sends its own signed requests to list keys and to read such objects.

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

/// The largest page that stores return for a list.
const PAGE: usize = 1000;

/// The characters that are not escaped in a signed request. A key's `/` is not escaped either.
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const IN_PATH: &AsciiSet = &IN_QUERY.remove(b'/');

/// A read-only bucket, with access configured by the `AWS_*` variables.
pub struct Bucket {
    s3: AmazonS3,
    http: HttpClient,
    /// The bucket's URL, without a trailing `/`.
    url: String,
    region: String,
    is_public: bool,
    requester_pays: bool,
}

/// An object in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key, not escaped.
    pub key: String,
    /// Its size.
    pub bytes: u64,
}

impl Listed {
    /// Whether it only marks a folder, as S3 consoles create them.
    pub fn is_folder(&self) -> bool {
        self.bytes == 0 && self.key.ends_with('/')
    }
}

/// The response to `ListObjectsV2`.
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

    /// The first `limit` objects, ordered by key, whose keys start with `prefix` and sort after `after`. Fewer
    /// only at the end.
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

    /// Lists one page, and returns whether it is the last.
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
            // A key may contain characters that are invalid in XML.
            Err(_) => self.list_url(&format!("{url}&encoding-type=url")).await?.map_err(broken)?,
        };
        let encoded = answer.encoding_type.as_deref() == Some("url");
        let key = |key: String| if encoded { decoded(&key) } else { key };
        let objects = answer.contents.into_iter();
        let listed: Vec<_> =
            objects.map(|Object { key: k, size }| Listed { key: key(k), bytes: size }).collect();
        // Without an order, the walk after the last key would never end.
        if listed.first().is_some_and(|first| after.is_some_and(|after| *first.key <= *after)) {
            return Err(broken("the store does not list its keys in order"));
        }
        Ok((listed, !answer.is_truncated))
    }

    /// Requests a list. The inner error is for a response that cannot be parsed.
    async fn list_url(&self, url: &str) -> Result<Result<Answer, quick_xml::DeError>, BlobError> {
        let answer = self.get(url).await?.into_body().bytes().await.map_err(broken)?;
        Ok(quick_xml::de::from_reader(answer.as_ref()))
    }

    /// Streams an object.
    pub async fn read(&self, key: &str) -> Result<BlobStream, BlobError> {
        match Path::parse(key) {
            // `object_store` resumes a broken stream.
            Ok(path) if path.as_ref() == key => {
                Ok(self.s3.get(&path).await?.into_stream().map_err(BlobError::from).boxed())
            }
            // HTTP clients would normalize this to the URL of another object.
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

    /// Sends a signed GET. A response without success is an error.
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

/// The URL of a bucket, taken from a URL that `object_store` signs with a dummy key.
async fn url_of(s3: AmazonS3Builder) -> Result<String, BlobError> {
    let key = AwsCredential { key_id: "-".to_owned(), secret_key: "-".to_owned(), token: None };
    let s3 = s3.with_credentials(Arc::new(StaticCredentialProvider::new(key))).build()?;
    let mut url = s3.signed_url(Method::GET, &Path::ROOT, Duration::from_secs(1)).await?;
    url.set_query(None);
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Decodes a key from `encoding-type=url`, in which a space may be a plus.
fn decoded(key: &str) -> String {
    percent_decode_str(&key.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// The error of a failed request, or of an invalid response.
fn broken(error: impl Into<Box<dyn Error + Send + Sync>>) -> BlobError {
    BlobError::from(object_store::Error::Generic { store: "S3", source: error.into() })
}
