use std::path::{Path, PathBuf};

use clap::Args;
use safelight_client::Client;

use crate::{error::CommandError, output::status};

/// Where the report goes.
#[derive(Args)]
pub struct ReportArgs {
    /// At the end, write the result of each image into this file, one JSON object per line
    #[arg(long = "report", value_name = "FILE.ndjson")]
    pub file: Option<PathBuf>,
}

/// The file of a report, under another name until it is complete.
pub struct Report {
    file: PathBuf,
    partial: PathBuf,
    target: tokio::fs::File,
}

impl ReportArgs {
    /// Opens the report's file, if one is asked for.
    pub async fn open(&self) -> Result<Option<Report>, CommandError> {
        let Some(file) = self.file.clone() else { return Ok(None) };
        if file.is_dir() {
            return Err(cannot_write(&file, &std::io::ErrorKind::IsADirectory.into()));
        }
        let mut partial = file.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let target = tokio::fs::File::create(&partial).await;
        let target = target.map_err(|error| cannot_write(&partial, &error))?;
        Ok(Some(Report { file, partial, target }))
    }
}

impl Report {
    pub async fn write(mut self, client: &Client, id: &str) -> Result<(), CommandError> {
        let wrong = |error| cannot_write(&self.file, &error);
        client.backfill_report(id, &mut self.target).await?;
        self.target.sync_all().await.map_err(wrong)?;
        tokio::fs::rename(&self.partial, &self.file).await.map_err(wrong)?;
        status!("report: {}", self.file.display());
        Ok(())
    }

    /// Removes the file of a report that is not written.
    pub async fn discard(self) {
        // An empty file that remains does no harm.
        let _ = tokio::fs::remove_file(&self.partial).await;
    }
}

fn cannot_write(file: &Path, error: &std::io::Error) -> CommandError {
    CommandError::failed(format!("cannot write {}: {error}", file.display()))
}
