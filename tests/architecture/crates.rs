//! Dependencies between crates.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::sources::{Member, members, packages};

/// Crates that do not depend on each other.
const PARTS: [&str; 6] = [
    "safelight-blobs",
    "safelight-config",
    "safelight-imaging",
    "safelight-queue",
    "safelight-shared-cache",
    "safelight-store",
];

/// Crates with drivers, and the only crates that may depend on them.
const DRIVERS: [&str; 2] = ["safelight-queue-rabbitmq", "safelight-store-sql"];
const MAY_USE_DRIVERS: [&str; 2] = ["safelight", "safelight-testing"];

/// Drivers and codecs. The client of the HTTP API must not depend on them.
const FORBIDDEN_IN_CLIENT: [&str; 8] =
    ["image", "lapin", "object_store", "rav1e", "redis", "sqlx", "turbojpeg", "webp"];

/// Dependencies that no code names. They are declared only to enable a feature.
const FEATURE_ONLY: [(&str, &str); 2] =
    [("safelight-blobs", "reqwest"), ("safelight-telemetry", "opentelemetry-http")];

/// Packages with a different crate name.
const CRATE_NAMES: [(&str, &str); 1] = [("kamadak-exif", "exif")];

/// Every member of the workspace with all its direct and indirect dependencies, dev dependencies excluded.
fn reachable(members: &[Member]) -> BTreeMap<&str, BTreeSet<&str>> {
    let direct: BTreeMap<&str, Vec<&str>> = members
        .iter()
        .map(|member| {
            let normal = member.dependencies.iter().filter(|dependency| dependency.normal);
            (member.name.as_str(), normal.map(|dependency| dependency.name.as_str()).collect())
        })
        .collect();
    let all = |from: &'_ str| {
        let (mut found, mut pending) = (BTreeSet::new(), direct[from].clone());
        while let Some(name) = pending.pop() {
            if found.insert(name) {
                pending.extend(direct.get(name).into_iter().flatten());
            }
        }
        found
    };
    members.iter().map(|member| (member.name.as_str(), all(&member.name))).collect()
}

#[test]
fn domain_depends_on_no_other_safelight_crate() -> Result<()> {
    let members = members()?;
    let reachable = reachable(&members);
    let dependencies: Vec<_> =
        reachable["safelight-domain"].iter().filter(|name| reachable.contains_key(*name)).collect();
    assert!(dependencies.is_empty(), "{dependencies:?}");
    Ok(())
}

#[test]
fn parts_do_not_depend_on_each_other() -> Result<()> {
    let members = members()?;
    let reachable = reachable(&members);
    for part in PARTS {
        let found: Vec<_> = PARTS.iter().filter(|other| reachable[part].contains(*other)).collect();
        assert!(found.is_empty(), "{part} depends on {found:?}");
    }
    Ok(())
}

#[test]
fn only_binary_and_tests_depend_on_drivers() -> Result<()> {
    for member in members()? {
        let normal = member.dependencies.iter().filter(|dependency| dependency.normal);
        let drivers: Vec<_> =
            normal.map(|one| &one.name).filter(|name| DRIVERS.contains(&name.as_str())).collect();
        let allowed = MAY_USE_DRIVERS.contains(&member.name.as_str());
        assert!(allowed || drivers.is_empty(), "{} depends on {drivers:?}", member.name);
    }
    Ok(())
}

#[test]
fn api_and_workers_do_not_depend_on_each_other() -> Result<()> {
    let members = members()?;
    let reachable = reachable(&members);
    assert!(!reachable["safelight-api"].contains("safelight-workers"));
    assert!(!reachable["safelight-workers"].contains("safelight-api"));
    Ok(())
}

/// Fuzzing builds must stay small: no database, no broker.
#[test]
fn fuzzing_depends_only_on_imaging() -> Result<()> {
    let ours: BTreeSet<_> = members()?.into_iter().map(|member| member.name).collect();
    let fuzzing = packages("fuzz/Cargo.toml")?;
    let used = fuzzing.iter().flat_map(|package| &package.dependencies).map(|one| &one.name);
    let used: Vec<_> = used.filter(|name| ours.contains(*name)).collect();
    assert_eq!(used, ["safelight-imaging"]);
    Ok(())
}

#[test]
fn client_depends_on_no_driver_and_no_codec() -> Result<()> {
    let members = members()?;
    let reachable = reachable(&members);
    let found: Vec<_> = FORBIDDEN_IN_CLIENT
        .iter()
        .filter(|package| reachable["safelight-client"].contains(*package))
        .collect();
    assert!(found.is_empty(), "{found:?}");
    Ok(())
}

#[test]
fn every_declared_dependency_is_used() -> Result<()> {
    let mut unused = BTreeSet::new();
    for member in members()? {
        let all_sources = member.sources(&["src", "tests", "benches", "fuzz_targets"])?;
        let main_sources = member.sources(&["src"])?;
        for dependency in &member.dependencies {
            let other_name = CRATE_NAMES.iter().find(|(package, _)| *package == dependency.name);
            let name =
                other_name.map_or(dependency.name.as_str(), |(_, name)| *name).replace('-', "_");
            let sources = if dependency.normal { &main_sources } else { &all_sources };
            let pair = (member.name.as_str(), dependency.name.as_str());
            if !FEATURE_ONLY.contains(&pair)
                && !sources.iter().any(|source| mentions(&source.code, &name))
            {
                unused.insert(format!("{} {}", pair.0, pair.1));
            }
        }
    }
    assert!(unused.is_empty(), "unused dependencies: {unused:#?}");
    Ok(())
}

/// Whether code names a crate: `name::`, `use name;` or `extern crate`.
fn mentions(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + name.len()..];
        let whole_word = !before.is_some_and(|c| c.is_alphanumeric() || c == '_');
        whole_word
            && (after.starts_with("::") || after.starts_with(';') || after.starts_with(" as "))
    })
}
