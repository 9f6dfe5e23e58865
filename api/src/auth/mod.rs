//! Who sends a request, and what they may do.
//!
//! ```text
//! request ─▶ guard ─ what does the route require?
//!              ├─ nothing (probes, image bytes) ───────────────────────────▶ handler
//!              ├─ Bearer key ─ known, live, right secret, scope ─┐
//!              └─ no key ─ own program, no keys yet ─────────────┴─▶ Caller ─▶ handler
//! ```
//!
//! Handlers get a [`Caller`] and look only at what it [may see](Caller::may_see). Handlers that delay or
//! stream a response stop when the caller's [`session_guard`] reports that the key is no longer valid.
//! Delivery checks access itself, because most images are public.

mod audit;
mod authenticator;
mod caller;
mod client;
mod key_lookups;
mod key_needed;
mod keys;
mod loopback;
mod proc_net;
mod session_guard;
mod signed_urls;
mod sockets;

pub use audit::{AuditDetail, AuditLog};
pub use authenticator::Authenticator;
pub use caller::{Caller, scope_missing};
pub use client::{Client, Sender};
pub use proc_net::is_own_listener;
pub use session_guard::SessionGuards;
pub use signed_urls::{MAX_SECONDS as MAX_SIGNED_SECONDS, SignedUrl, SignedUrls};
