//! Keeps other users of this machine out of the files and the memory of this process.

use rustix::{fs::Mode, process::umask};

/// Rights of the group.
const GROUP: Mode = Mode::RWXG;

/// Everything that anybody but the owner could do.
const NOT_OWNER: Mode = Mode::RWXG.union(Mode::RWXO);

/// To be called before anything else, with a single thread.
pub fn protect_process() {
    keep_new_files_private();
    keep_memory_private();
}

/// New files and folders are for this user alone: blobs are pictures that may be private, and the blob folder may
/// be one that everybody can enter. A umask that lets the group write, such as 0007, says that the group is meant
/// to share them. A folder's default ACL takes precedence over all of this.
fn keep_new_files_private() {
    let before = umask(NOT_OWNER);
    if !before.intersects(GROUP) {
        umask(before | Mode::RWXO);
    }
}

/// No core dump and no debugger of the same user reads keys and passwords; root can. Decoders become dumpable
/// again when they are started: they have no secrets.
fn keep_memory_private() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        // Fails on no kernel of the last 20 years, and nothing depends on it.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::{DumpableBehavior, dumpable_behavior};

    use super::*;

    #[test]
    fn memory_cannot_be_dumped() {
        keep_memory_private();
        assert_eq!(dumpable_behavior().expect("known"), DumpableBehavior::NotDumpable);
    }
}
