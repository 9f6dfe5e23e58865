//! Bytes that a removal moved to the trash before its process died.

use std::time::Duration;

use async_trait::async_trait;

use super::period::sweep_period;
use crate::maintenance::service::{Service, ServiceError};
use safelight_removal::Remover;

/// Empties the trash.
pub(crate) struct Trash {
    remover: Remover,
    period: Duration,
}

impl Trash {
    /// `grace` is that of staged bytes.
    pub fn new(remover: Remover, grace: Duration) -> Self {
        Self { remover, period: sweep_period(grace) }
    }
}

#[async_trait]
impl Service for Trash {
    fn name(&self) -> &'static str {
        "trash"
    }

    fn action(&self) -> &'static str {
        "empty the trash"
    }

    fn period(&self) -> Option<Duration> {
        Some(self.period)
    }

    async fn run(&mut self) -> Result<(), ServiceError> {
        Ok(self.remover.resume().await?)
    }
}
