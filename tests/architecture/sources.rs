//! The members of the workspace and their sources.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A member of the workspace.
pub struct Member {
    pub name: String,
    pub folder: PathBuf,
    pub dependencies: Vec<Dependency>,
}

/// A declared dependency of a member.
pub struct Dependency {
    pub name: String,
    /// False for dev and build dependencies.
    pub normal: bool,
}

pub struct Source {
    pub path: PathBuf,
    pub code: String,
}

/// All members of the workspace.
pub fn members() -> Result<Vec<Member>> {
    packages("Cargo.toml")
}

/// The packages of a workspace, from `cargo metadata`. `manifest` is a path from the root of the repository.
pub fn packages(manifest: &str) -> Result<Vec<Member>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .args(["--manifest-path", manifest])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    metadata["packages"].as_array().context("packages")?.iter().map(member).collect()
}

fn member(package: &Value) -> Result<Member> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a string");
    let manifest = PathBuf::from(text(&package["manifest_path"])?);
    let dependencies = package["dependencies"].as_array().context("dependencies")?;
    let dependencies = dependencies.iter().map(|dependency| {
        let name = text(&dependency["name"])?;
        Ok(Dependency { name, normal: dependency["kind"].is_null() })
    });
    Ok(Member {
        name: text(&package["name"])?,
        folder: manifest.parent().context("a folder")?.to_owned(),
        dependencies: dependencies.collect::<Result<_>>()?,
    })
}

impl Member {
    /// The member's Rust files below the given folders, without files of nested members.
    pub fn sources(&self, folders: &[&str]) -> Result<Vec<Source>> {
        let mut found = Vec::new();
        for folder in folders {
            let folder = self.folder.join(folder);
            if folder.is_dir() {
                collect(&folder, &mut found)?;
            }
        }
        Ok(found)
    }
}

fn collect(folder: &Path, found: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.join("Cargo.toml").exists() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(Source { code: fs::read_to_string(&path)?, path });
        }
    }
    Ok(())
}
