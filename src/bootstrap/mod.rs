//! What a long-running process is made of, before it does its work.

pub mod background;
pub mod checks;
pub mod fs_permissions;
pub mod installation;
pub mod listen;
pub mod local_key;
pub mod privacy;
pub mod runtime;
pub mod services;
pub mod tls;
