//! End-to-end, contract and fault tests over real engines, and snapshots of what must not change: one
//! binary, so that they link once and share what they start.

mod contract;
mod e2e;
mod faults;
mod snapshots;
mod wait;
