//! What breaks, and what it must not break.

mod poison;
