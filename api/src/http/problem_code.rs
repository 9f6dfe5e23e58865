//! The table of problems: their codes, statuses and titles.

use axum::http::StatusCode;

/// Declares the table of problems: one row is everything that is the same for all of its kind.
macro_rules! problems {
    ($( $(#[$meta:meta])* $variant:ident = $status:literal $code:literal $title:literal $retry:tt ),+ $(,)?) => {
        /// Every kind of problem. The name is stable: clients decide by it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ProblemCode { $( $(#[$meta])* $variant ),+ }

        impl ProblemCode {
            /// The whole table.
            #[cfg(test)]
            pub const ALL: &[Self] = &[ $( Self::$variant ),+ ];

            /// The stable name; `type` is `urn:safelight:problem:` and this.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $code ),+ }
            }

            /// The HTTP status.
            pub fn status(self) -> StatusCode {
                let status: u16 = match self { $( Self::$variant => $status ),+ };
                StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }

            /// What it is, in the same words every time.
            pub const fn title(self) -> &'static str {
                match self { $( Self::$variant => $title ),+ }
            }

            /// Whether and when the same request may be tried again.
            pub const fn retry(self) -> Retry {
                match self { $( Self::$variant => problems!(@retry $retry) ),+ }
            }
        }
    };
    (@retry never) => { Retry::Never };
    (@retry later) => { Retry::Later };
    (@retry $seconds:literal) => { Retry::After($seconds) };
}

impl ProblemCode {
    /// Whether the request was more than a limit allows, which says nothing against the request itself. Without too many
    /// uploads, which have waited for a permit before they are refused.
    pub const fn is_beyond_limit(self) -> bool {
        matches!(
            self,
            Self::OverQuota
                | Self::RateLimited
                | Self::TooManyJobs
                | Self::TooManyOwnRequests
                | Self::TooManyRequests
                | Self::TooManyWaiting
        )
    }
}

/// Whether the same request can succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It cannot.
    Never,
    /// It can, at an unknown time.
    Later,
    /// It can; the response carries `Retry-After` with these seconds.
    After(u32),
}

problems! {
    NotFound = 404 "not_found" "No such path" never,
    MethodNotAllowed = 405 "method_not_allowed" "The path does not take this method" never,
    InvalidRequest = 400 "invalid_request" "The request cannot be understood" never,
    InvalidQuery = 400 "invalid_query" "A query parameter is not valid" never,
    InvalidHeader = 400 "invalid_header" "A header is not valid" never,
    InvalidMultipart = 400 "invalid_multipart" "The multipart body is not valid" never,
    InvalidField = 400 "invalid_field" "A field of the upload is not valid" never,
    InvalidIdempotencyKey = 400 "invalid_idempotency_key" "The Idempotency-Key is not valid" never,
    InvalidBody = 400 "invalid_body" "The body is not what the call takes" never,
    InvalidDigest = 400 "invalid_digest" "The Content-Digest is not valid" never,
    UnsupportedDigest = 400 "unsupported_digest" "The Content-Digest has no known algorithm" never,
    DigestMismatch = 400 "digest_mismatch" "The body is not what Content-Digest says" later,
    EmptyBody = 400 "empty_body" "The upload has no bytes" never,
    BrokenBody = 400 "broken_body" "The body broke off" later,
    KeyMissing = 401 "key_missing" "A key is needed" never,
    InvalidKey = 401 "invalid_key" "The key is not valid" never,
    ScopeMissing = 403 "scope_missing" "The key may not do this" never,
    InvalidSignature = 403 "invalid_signature" "The URL's signature is not valid" never,
    SignatureExpired = 403 "signature_expired" "The signed URL has expired" never,
    OverQuota = 403 "over_quota" "The owner's quota is used up" never,
    SourceForbidden = 403 "source_forbidden" "The source may not be read" never,
    KeyNotFound = 404 "key_not_found" "No such key" never,
    TaskNotFound = 404 "task_not_found" "No such task" never,
    ImageNotFound = 404 "image_not_found" "No such image" never,
    PresetNotFound = 404 "preset_not_found" "No such preset" never,
    RenditionNotMade = 404 "rendition_not_made" "The image has no rendition of this preset" later,
    ImageFailed = 404 "image_failed" "The image could not be processed" never,
    UploadTimeout = 408 "upload_timeout" "The body came too slowly" later,
    TaskEnded = 409 "task_ended" "The task has ended" never,
    TaskNotFailed = 409 "task_not_failed" "The task has not failed" never,
    TaskDiscarded = 409 "task_discarded" "The task's image was cancelled or deleted" never,
    NotCancellable = 409 "task_not_cancellable" "The task cannot be cancelled" never,
    NotABackfill = 409 "not_a_backfill" "The task is no backfill" never,
    KeyInFlight = 409 "idempotency_key_in_flight" "An upload with this key is being received" 1,
    ImageCancelled = 410 "image_cancelled" "The image's upload was cancelled" never,
    PreconditionFailed = 412 "precondition_failed" "What is there is not what the request expects" never,
    ImageDeleted = 410 "image_deleted" "The image was deleted" never,
    UriTooLong = 414 "uri_too_long" "The path or the query is too long" never,
    RangeNotSatisfiable = 416 "range_not_satisfiable" "None of the ranges exists" never,
    UploadTooLarge = 413 "upload_too_large" "The upload is too large" never,
    BodyTooLarge = 413 "body_too_large" "The body is too large" never,
    NotJson = 415 "not_json" "The body is not declared as JSON" never,
    UnsupportedMediaType = 415 "unsupported_media_type" "No picture that Safelight reads" never,
    IdTaken = 422 "id_taken" "The id is that of another task" never,
    KeyReused = 422 "idempotency_key_reused" "The key was used for another payload" never,
    RateLimited = 429 "rate_limited" "Too many requests" 1,
    TooManyOwnUploads = 429 "too_many_own_uploads" "Too many uploads of this owner at once" 1,
    TooManyOwnRequests = 429 "too_many_own_requests" "Too many requests of this owner at once" 1,
    HeadTooLarge = 431 "head_too_large" "The header fields are too many or too large" never,
    UnsupportedTransferCoding = 501 "unsupported_transfer_coding" "The transfer coding is not implemented" never,
    Internal = 500 "internal" "The server failed" later,
    BlobDamaged = 500 "blob_damaged" "The stored bytes are missing or damaged" never,
    TooManyUploads = 503 "too_many_uploads" "Too many uploads at once" 1,
    TooManyJobs = 503 "too_many_jobs" "Too much work is queued" 10,
    TooManyRequests = 503 "too_many_requests" "Too many requests at once" 1,
    TooManyWaiting = 503 "too_many_waiting" "Too many clients are waiting" 5,
    ImageNotReady = 503 "image_not_ready" "The image is still being processed" 1,
    DatabaseUnavailable = 503 "database_unavailable" "The database does not answer" 2,
    BlobsUnavailable = 503 "store_unavailable" "The blob store does not answer" 2,
    NotReady = 503 "not_ready" "This node cannot serve now" 2,
    StorageFull = 507 "storage_full" "No space is left for uploads" 30,
}
