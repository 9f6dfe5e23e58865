//! The trait of a kind of job, and what jobs work with.

use std::sync::Arc;

use async_trait::async_trait;
use safelight_blobs::Blobs;
use safelight_config::Config;
use safelight_decoder::{Attempt, Decoder, DecoderOptions};
use safelight_domain::{ErrorCode, Failure, JOB_VERSION, Lane, Presets};
use safelight_imaging::Limits;
use safelight_removal::Remover;
use safelight_shared_cache::SharedCache;
use safelight_store::{ClaimedJob, Deletions, Outcome, StoreError};

use crate::removal::Purger;

/// A kind of job.
#[async_trait]
pub(crate) trait Job: Send + Sync {
    /// What its attempts mostly wait for.
    fn slots(&self) -> SlotClass;

    /// The lanes that it is queued on.
    fn lanes(&self) -> &'static [Lane] {
        Lane::ALL
    }

    /// The newest version of such jobs that this release understands. Newer ones are left to newer
    /// workers.
    fn newest_version(&self) -> u32 {
        JOB_VERSION
    }

    /// Whether it has work to do for an image that was deleted or cancelled.
    fn runs_without_image(&self) -> bool {
        false
    }

    /// Runs one attempt.
    async fn run(&self, context: &Context, job: &ClaimedJob) -> Result<Outcome, Failure>;
}

/// What attempts mostly wait for, which decides how many of them run concurrently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotClass {
    /// A processor: one attempt for each.
    Processor,
    /// Disks and networks, so a processor serves several.
    Storage,
}

impl SlotClass {
    const STORAGE_SLOTS_PER_PROCESSOR: usize = 4;

    /// Concurrent attempts in a worker with this concurrency.
    pub fn count(self, concurrency: usize) -> usize {
        match self {
            Self::Processor => concurrency.max(1),
            Self::Storage => concurrency.max(1) * Self::STORAGE_SLOTS_PER_PROCESSOR,
        }
    }
}

/// What the jobs of one worker work with.
pub(crate) struct JobParts {
    pub deletions: Arc<dyn Deletions>,
    pub blobs: Blobs,
    pub shared_cache: Option<SharedCache>,
    pub remover: Remover,
    pub purger: Purger,
    /// Where pictures are decoded.
    pub decoder: Decoder,
    pub presets: Presets,
    pub keep_gps: bool,
}

impl JobParts {
    /// For a worker with this concurrency.
    pub fn new(
        deletions: Arc<dyn Deletions>,
        blobs: Blobs,
        remover: Remover,
        shared_cache: Option<SharedCache>,
        config: &Config,
        concurrency: usize,
    ) -> Self {
        Self {
            remover,
            purger: Purger::new(&config.purge_urls, &config.presets, config.unknown_after()),
            decoder: Decoder::new(decoder_options(config), concurrency.max(1)),
            presets: config.presets.clone(),
            keep_gps: config.keep_gps,
            deletions,
            blobs,
            shared_cache,
        }
    }
}

/// What one attempt works with.
pub(crate) struct Context {
    pub parts: Arc<JobParts>,
    /// What this attempt may decode with, and for how long.
    pub attempt: Attempt,
}

/// A failed query, as a job's failure.
pub(super) fn database_unavailable(error: &StoreError) -> Failure {
    tracing::warn!(error = error as &dyn std::error::Error, "a job cannot query the database");
    Failure::new(ErrorCode::DatabaseUnavailable, "the database did not answer")
}

/// The configured options of the decoder.
pub fn decoder_options(config: &Config) -> DecoderOptions {
    DecoderOptions {
        limits: Limits {
            max_pixels: config.max_pixels,
            max_side: config.max_side,
            max_frames: config.max_frames,
            max_animation_pixels: config.max_animation_pixels,
            max_memory: config.decode_memory_bytes,
            heic: config.heic,
        },
        cpu_seconds: config.decode_cpu_seconds,
        isolate: config.isolate_decoding,
        sandbox: config.sandbox_decoding,
    }
}
