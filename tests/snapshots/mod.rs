//! Reviewed snapshots of everything that users, dashboards and stored data rely on: one `.snap` file each, in
//! this folder. The snapshots of problem documents are in `api`, next to their table.
//!
//! A changed snapshot means that something outside this repository may break: a generated client, a script,
//! an alert, a queue or a database of the previous release. Review the difference like an API change, and add
//! it to the changelog.
//!
//! If the output differs, the test fails, shows the difference, and writes a `.snap.new` file next to the
//! reviewed one. If `CI` is set, it writes nothing. To accept the reviewed changes:
//!
//! ```sh
//! INSTA_UPDATE=always cargo test --workspace --test e2e -- snapshots::
//! git diff tests/snapshots
//! ```
//!
//! `cargo insta review` does the same file by file.

mod blobs;
mod commands;
mod metrics;
mod queues;
mod schema;

/// Fails unless `text` equals the reviewed `tests/snapshots/NAME.snap`.
fn assert_reviewed(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(".");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}
