//! Wrong clocks, by the library of Debian's package `faketime`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The path of the library, for `LD_PRELOAD`.
pub fn library() -> Result<String> {
    let folders = fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path().join("faketime"));
    let found = folders.map(|folder| folder.join("libfaketimeMT.so.1")).find(|path| path.exists());
    let found = found.context("no libfaketimeMT.so.1; hint: scripts/setup.sh test")?;
    Ok(found.to_string_lossy().into_owned())
}

/// The clock of processes that are started with [`FakeClock::env`]. Timers and the times of files stay right.
pub struct FakeClock {
    file: PathBuf,
}

impl FakeClock {
    /// A clock that is wrong by `offset`, such as `+1h` or `+0`. Its file is in `folder`.
    pub fn new(folder: &Path, offset: &str) -> Result<Self> {
        let clock = Self { file: folder.join("clock") };
        clock.set(offset)?;
        Ok(clock)
    }

    /// Sets the clock of processes that run.
    pub fn set(&self, offset: &str) -> Result<()> {
        // A process may read it at any moment.
        let new = self.file.with_extension("new");
        fs::write(&new, offset)?;
        Ok(fs::rename(&new, &self.file)?)
    }

    /// The variables of a process that uses this clock. It reads the file each time.
    pub fn env(&self) -> Result<[(&'static str, String); 5]> {
        Ok([
            ("LD_PRELOAD", library()?),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_string_lossy().into_owned()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ])
    }
}
