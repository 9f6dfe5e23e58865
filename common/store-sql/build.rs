//! Lists the files of `migrations/` for `src/schema.rs`, so that a new migration is one file per database.
//! (`sqlx::migrate!` does the same, but compiles both drivers a second time for the compiler's use.)

use std::{
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    let output = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for database in ["postgres", "sqlite"] {
        let folder = folders.join(database);
        println!("cargo:rerun-if-changed={}", folder.display());
        let list = list(&folder);
        fs::write(output.join(format!("{database}.rs")), list).expect("OUT_DIR is writable");
    }
}

/// A Rust expression: `[(version, description, SQL), …]`, ordered by version.
fn list(folder: &Path) -> String {
    let files = fs::read_dir(folder).expect("the folder of migrations exists");
    let mut files: Vec<PathBuf> =
        files.map(|file| file.expect("the folder is readable").path()).collect();
    files.sort();
    let entries: Vec<String> = files.iter().map(|file| entry(file)).collect();
    format!("[{}]", entries.concat())
}

/// `0001_core.sql` becomes `(1, "core", include_str!("…/0001_core.sql")),`.
fn entry(file: &Path) -> String {
    let name = file.file_name().and_then(|name| name.to_str()).expect("an ASCII name");
    let (version, description) = name
        .strip_suffix(".sql")
        .and_then(|name| name.split_once('_'))
        .unwrap_or_else(|| panic!("{name} is not named VERSION_DESCRIPTION.sql"));
    let version: i64 =
        version.parse().unwrap_or_else(|_| panic!("{name} does not start with a number"));
    let description = description.replace('_', " ");
    let file = file.to_str().expect("a UTF-8 path");
    format!("({version}, {description:?}, include_str!({file:?})),")
}
