//! The work behind the queue: the worker loop and its job handlers, imaging, and the three
//! housekeepers ([`relay`], [`rescuer`], [`janitor`]) that make lost messages, dead workers and
//! abandoned bytes harmless.

pub mod imaging;
