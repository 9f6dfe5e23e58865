use std::io;

use reqwest::{
    Body, Method, Response, StatusCode,
    header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION},
};
use serde_json::Value;

use crate::{
    client::{Client, document, send},
    error::ClientError,
    retry::Retries,
};

impl Client {
    /// Uploads a file, which is opened for each try; returns the task. The key makes repetitions harmless.
    pub async fn upload_file(
        &self,
        name: &str,
        open: impl AsyncFn() -> io::Result<std::fs::File>,
        idempotency_key: &str,
    ) -> Result<Value, ClientError> {
        let mut retries = Retries::new(self.tries());
        loop {
            let body = tokio::fs::File::from_std(open().await.map_err(ClientError::new)?);
            let length = body.metadata().await.map_err(ClientError::new)?.len();
            let request = self
                .request(Method::POST, "/v1/images")
                .header("idempotency-key", idempotency_key)
                .header(CONTENT_LENGTH, length)
                .header(CONTENT_DISPOSITION, disposition(name))
                .body(Body::from(body));
            let done = match send(request).await {
                Ok(response) => accepted(response).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(task) => return Ok(task),
                Err(error) => retries.after(error).await?,
            }
        }
    }

    /// Uploads a body; returns the task. Never retried.
    pub async fn upload(&self, body: impl Into<Body>) -> Result<Value, ClientError> {
        accepted(self.post_image(body, &[]).await?).await
    }

    /// Uploads a body with `headers`; returns the response also if it is an error. Never retried.
    pub async fn post_image(
        &self,
        body: impl Into<Body>,
        headers: &[(&str, &str)],
    ) -> Result<Response, ClientError> {
        let request = self.request(Method::POST, "/v1/images").header(CONTENT_TYPE, "image/jpeg");
        let request = headers.iter().fold(request, |r, (name, value)| r.header(*name, *value));
        request.body(body).send().await.map_err(|error| ClientError::unreachable(&error))
    }
}

/// The task of a response; fails unless it is a 202 whose `Location` names that task.
pub async fn accepted(response: Response) -> Result<Value, ClientError> {
    let status = response.status();
    if !status.is_success() {
        return Err(ClientError::rejected(response).await);
    }
    let location = response.headers().get(LOCATION).cloned();
    let task: Value = document(response).await?;
    let Some(id) = task["id"].as_str() else {
        return Err(ClientError::unexpected("task", &task));
    };
    let expected = format!("/v1/tasks/{id}");
    if status != StatusCode::ACCEPTED || location.is_none_or(|found| found != *expected) {
        return Err(ClientError::unexpected("202 with the task's Location", &task));
    }
    Ok(task)
}

/// `Content-Disposition` with the file's name in the encoding of RFC 8187.
fn disposition(name: &str) -> String {
    use std::fmt::Write;

    let mut encoded = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            // Writing into a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    format!("attachment; filename*=UTF-8''{encoded}")
}

#[cfg(test)]
mod tests {
    use super::disposition;

    #[test]
    fn file_names_are_percent_encoded() {
        let header = disposition("a hügel\".jpg");
        assert_eq!(header, "attachment; filename*=UTF-8''a%20h%C3%BCgel%22.jpg");
    }
}
