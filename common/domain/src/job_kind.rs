//! What a job does, and how urgent it is: together they name its queue.

use super::{ids::JobId, text_enum::text_enum};

text_enum! {
    /// What a job does.
    "job kind" JobKind {
        /// Store the blob under its hash, and its metadata.
        Write = "write",
        /// Make the renditions of the presets.
        Thumbnail = "thumbnail",
        /// Read an image's bytes and renditions, compare them with their hashes, and repair.
        Verify = "verify",
        /// Remove everything of an image.
        Delete = "delete",
    }
}

impl JobKind {
    /// The jobs of an image that is new, in their order.
    pub const OF_NEW_IMAGE: [Self; 2] = [Self::Write, Self::Thumbnail];

    /// [`OF_NEW_IMAGE`](Self::OF_NEW_IMAGE) with new ids. They sort in this order, in which a task shows its jobs.
    pub fn jobs_of_new_image() -> Vec<(JobId, Self)> {
        let mut ids = Self::OF_NEW_IMAGE.map(|_| JobId::new());
        ids.sort_unstable();
        ids.into_iter().zip(Self::OF_NEW_IMAGE).collect()
    }

    /// The version that a worker must understand to run a new job of this kind: at most
    /// [`JOB_VERSION`](super::JOB_VERSION).
    pub const fn needs_version(self) -> u32 {
        match self {
            // Workers of version 1 do not record which renditions they made.
            Self::Thumbnail => 2,
            Self::Write | Self::Verify | Self::Delete => 1,
        }
    }
}

text_enum! {
    /// The priority of work. Bulk work never delays interactive work.
    "lane" Lane {
        /// Work for a client's request.
        Interactive = "interactive",
        /// Work of a backfill.
        Bulk = "bulk",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::JOB_VERSION;

    #[test]
    fn new_jobs_need_no_version_above_this_release() {
        assert!(JobKind::ALL.iter().all(|kind| kind.needs_version() <= JOB_VERSION));
    }
}
