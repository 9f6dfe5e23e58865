//! What a long-running process is made of, before it does its work.

pub mod background;
pub mod checks;
mod fs_permissions;
pub mod listen;
pub mod runtime;
pub mod services;
pub mod tls;
