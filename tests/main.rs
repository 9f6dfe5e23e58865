//! Contract suites and end-to-end tests over real engines, in one binary so that they share them.

mod contract;
mod e2e;
