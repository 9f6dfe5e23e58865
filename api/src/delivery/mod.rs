//! The bytes: originals and renditions.
//!
//! ```text
//! request ─▶ metadata_cache    what is known of the image; one read for all requests
//!              ├─ not there (yet) ─▶ on_demand    wait, request once, or explain
//!              ├─ bytes missing or damaged ─▶ repair    the same for a rendition that was there
//!              ▼
//!            image_view ─▶ negotiate ─▶ respond ─▶ 304, or headers and
//!                                     └─▶ source    memory ─ disk ─ shared ─ store
//! ```
//!
//! [`FastPath`] is a layer in front of the router: it answers requests for which everything is in memory.
//!
//! Nothing here decodes an image or needs the queue, and everything that is cached can be dropped at any time.
//! `docs/delivery.md` describes the whole way, proxies included.

mod download_name;
mod fast_path;
mod image_view;
mod lifetime;
mod metadata_cache;
mod negotiate;
mod on_demand;
mod ranges;
mod reads;
mod repair;
mod respond;
mod source;

pub use fast_path::{FastPath, FastPathLayer};
pub use reads::{Delivery, DeliveryParts, ReadRequest};
