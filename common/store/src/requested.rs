//! Whether a rendition that is asked for is worth a job, on either backend.

use safelight_domain::{Status, TaskId, TaskKind};

use super::{RenditionRequest, Requested};

/// The thumbnail job of an image that decides: one that has not ended, else the last.
pub struct LastJob {
    /// Its task.
    pub task: TaskId,
    /// What its task is for.
    pub kind: TaskKind,
    /// Where it stands.
    pub status: Status,
    /// Its task ended less than [`RenditionRequest::again_after`] ago.
    pub is_recent: bool,
}

/// The answer, if it is not to queue a job.
pub fn answer(last: Option<&LastJob>, request: &RenditionRequest) -> Option<Requested> {
    let last = last?;
    match last.status {
        Status::Queued | Status::Running => Some(Requested::Pending(last.task)),
        // Only a person may try it again: the requests for a picture that cannot be made never end.
        Status::Failed => Some(Requested::Recent(last.task)),
        // Whoever cancelled it meant what was asked for then, and not all that is asked for later.
        Status::Cancelled => {
            let stays = last.kind != TaskKind::Rendition || last.is_recent;
            stays.then_some(Requested::Recent(last.task))
        }
        // An upload's job has made what was configured then; that may have been less.
        Status::Succeeded => {
            let is_recent = last.kind == TaskKind::Rendition && last.is_recent;
            // The answer to this very request was lost, and its job was quick.
            let is_own = last.task == request.task;
            (is_recent || is_own).then_some(Requested::Recent(last.task))
        }
    }
}
