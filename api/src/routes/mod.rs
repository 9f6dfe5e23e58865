//! The routes, a file or folder per resource: each with the handlers, what they require of their caller, and the
//! problems that they answer with.

mod audit;
mod backfills;
pub mod docs;
mod documents;
mod image_bytes;
mod images;
mod keys;
mod limits;
pub mod probes;
mod queues;
pub mod registry;
mod signed_urls;
mod task_responses;
mod tasks;
mod uploads;
mod workers;

use crate::state::ApiOptions;
use registry::ApiRoutes;

/// The routes that a node serves, added to `frame`.
pub fn all(frame: ApiRoutes, options: ApiOptions) -> ApiRoutes {
    let mut all = frame.merge(probes::routes());
    if options.uploads {
        let resources = [
            // Before backfills, which also describe a `Scope`: the first of a name is kept.
            keys::routes(),
            uploads::routes(),
            images::routes(),
            signed_urls::routes(),
            tasks::routes(),
            backfills::routes(),
            limits::routes(),
            workers::routes(),
            queues::routes(),
            audit::routes(),
        ];
        all = resources.into_iter().fold(all, ApiRoutes::merge);
    }
    if options.delivery {
        all = all.merge(image_bytes::routes());
    }
    all
}
