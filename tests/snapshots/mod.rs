//! Reviewed snapshots of what users, dashboards and stored data rely on: one `.snap` file each, in
//! this folder. The problem documents have theirs beside their table, in `api`.
//!
//! A changed snapshot means that something outside this repository may break: a generated client, a
//! script, an alert, a queue or a database of the release before. Review the difference as you would
//! an API change, and put it into the changelog.
//!
//! A test whose output differs fails, shows the difference, and leaves a `.snap.new` file beside the
//! reviewed one; where `CI` is set it fails and writes nothing. To accept what you have reviewed:
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
