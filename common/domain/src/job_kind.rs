//! What a job does, and how urgent it is: together they name its queue.

use super::text_enum::text_enum;

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

text_enum! {
    /// The priority of work. Bulk work never delays interactive work.
    "lane" Lane {
        /// Work for a client's request.
        Interactive = "interactive",
        /// Work of a backfill.
        Bulk = "bulk",
    }
}
