//! An ext4 file system in a file, mounted for one process alone: a disk that can lose its power, and a volume that
//! can be unmounted while it is used. Needs root, loop devices and `mkfs.ext4`.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{
    server::{Server, safelight},
    wait::blocking_eventually,
};

/// Large enough for hundreds of small pictures, and small enough to be copied in milliseconds.
const BYTES: u64 = 64 << 20;

/// The bytes of a block, in the file system and in copies.
const BLOCK: usize = 4096;

/// How long a frozen process's last writes, and a file that is still open, may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// Mounts the image `$1` on the folder `$2`, then replaces the shell by the server.
const MOUNT: &str = r#"mount -o loop,noatime "$1" "$2" && exec "$0" serve"#;

const HINT: &str = "hint: this needs root, /dev/loop-control and the packages util-linux and e2fsprogs; \
                    in a container: --privileged";

/// A file system that one process mounts in a mount namespace of its own, so that the mount ends with it.
pub struct Volume {
    folder: TempDir,
}

impl Volume {
    /// Makes an empty file system.
    pub fn new() -> Result<Self> {
        let root = fs::metadata("/proc/self")?.uid() == 0;
        ensure!(root && Path::new("/dev/loop-control").exists(), HINT);
        let volume = Self::unformatted()?;
        // Nothing is left to do in the background, so the volume changes only when it is used.
        let mut format = Command::new("mkfs.ext4");
        format.args(["-q", "-F", "-b", &BLOCK.to_string()]);
        format.args(["-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(volume.image());
        checked(&mut format)?;
        Ok(volume)
    }

    fn unformatted() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("safelight-volume-").tempdir()?;
        let volume = Self { folder };
        fs::create_dir(volume.mount_point())?;
        File::create(volume.image())?.set_len(BYTES)?;
        Ok(volume)
    }

    /// The folder on which it is mounted, as its process sees it. For others it is the folder below the mount.
    pub fn mount_point(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    /// The device: what of the file system would survive a power loss.
    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Starts `safelight serve` with the volume mounted.
    pub fn serve(&self, binary: &Path, env: &[(String, String)]) -> Result<Server> {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", MOUNT]).arg(binary).arg(self.image());
        command.arg(self.mount_point());
        // The same clean environment as that of other tests.
        for (key, value) in safelight(binary, ["serve"], env).get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        Server::start(command).context(HINT)
    }

    /// A volume with everything that has reached the device of this one so far, as after a power loss now. The
    /// page cache of the mounted file system is not part of it. Nobody may write to the volume meanwhile.
    pub fn after_power_loss(&self) -> Result<Self> {
        let mut content = fs::read(self.image())?;
        // Writes of the kernel that had begun before, such as that of its journal, may still go on.
        blocking_eventually(LIMIT, "nothing writes to the device", || {
            let before = std::mem::replace(&mut content, fs::read(self.image())?);
            Ok(before == content)
        })?;
        let copy = Self::unformatted()?;
        let image = File::options().write(true).open(copy.image())?;
        for (offset, block) in (0..).step_by(BLOCK).zip(content.chunks(BLOCK)) {
            if block.iter().any(|&byte| byte != 0) {
                image.write_all_at(block, offset)?;
            }
        }
        Ok(copy)
    }

    /// Unmounts the volume of a running process, which then finds the folder below.
    pub fn unmount(&self, server: &Server) -> Result<()> {
        // Busy while a file is open.
        let unmounted =
            || Ok(inside(server).arg("umount").arg(self.mount_point()).status()?.success());
        blocking_eventually(LIMIT, "the volume is unmounted", unmounted)
    }

    /// Mounts it again after [`Volume::unmount`].
    pub fn mount(&self, server: &Server) -> Result<()> {
        let mut mount = inside(server);
        mount.args(["mount", "-o", "loop,noatime"]).arg(self.image()).arg(self.mount_point());
        checked(&mut mount)
    }

    /// Makes it read-only, as the kernel does after an error of the device, or writable again.
    pub fn set_read_only(&self, server: &Server, read_only: bool) -> Result<()> {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        // Busy while a file is open for writing.
        let remounted = || {
            let mut mount = inside(server);
            mount.args(["mount", "-o", options]).arg(self.mount_point());
            Ok(mount.status()?.success())
        };
        blocking_eventually(LIMIT, "the volume is remounted", remounted)
    }

    /// Copies a folder of the mounted volume to `target`, because SQLite cannot open files behind the links of
    /// `/proc`. The copy is consistent only while nothing changes.
    pub fn copy_files(&self, server: &Server, target: &Path) -> Result<()> {
        checked(inside(server).args(["cp", "-a"]).arg(self.mount_point()).arg(target))
    }
}

/// A command in the mount namespace of the process; its arguments follow.
fn inside(server: &Server) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-m", "-t", &server.id().to_string()]);
    command.stderr(std::process::Stdio::null());
    command
}

fn checked(command: &mut Command) -> Result<()> {
    let output = command.output().context(HINT)?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {text}\n{HINT}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows that the tests of power losses would notice a missing sync.
    #[test]
    fn power_loss_keeps_only_synced_files() -> Result<()> {
        let volume = Volume::new()?;
        // Writes two files, syncs one of them, and keeps the volume mounted until the copy is taken.
        let script = r#"mount -o loop,noatime "$1" "$2" && cd "$2" && head -c 100000 /dev/zero |
            tr '\0' x | tee unsynced | dd of=synced conv=fsync 2>/dev/null && echo listening on http://127.0.0.1:1 &&
            sleep 60"#;
        let mut writer = Command::new("unshare");
        writer.args(["-m", "sh", "-c", script, "sh"]).arg(volume.image()).arg(volume.mount_point());
        let writer = Server::start(writer)?;
        let copy = volume.after_power_loss()?;
        drop(writer);
        let sizes = r#"mount -o loop,noatime "$1" "$2" && cd "$2" && wc -c <synced &&
            cat unsynced 2>/dev/null | wc -c"#;
        let mut reader = Command::new("unshare");
        reader.args(["-m", "sh", "-c", sizes, "sh"]).arg(copy.image()).arg(copy.mount_point());
        let found = String::from_utf8(reader.output()?.stdout)?;
        assert_eq!(found.split_whitespace().collect::<Vec<_>>(), ["100000", "0"]);
        Ok(())
    }
}
