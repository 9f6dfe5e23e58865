//! Dependencies between crates.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::sources::{Member, members};

/// Crates that see none of the others among them.
const PARTS: [&str; 6] = [
    "safelight-blobs",
    "safelight-config",
    "safelight-imaging",
    "safelight-queue",
    "safelight-shared-cache",
    "safelight-store",
];

/// Crates with drivers, and the only ones that may depend on them.
const DRIVERS: [&str; 2] = ["safelight-queue-rabbitmq", "safelight-store-sql"];
const DRIVERS_ARE_SEEN_BY: [&str; 2] = ["safelight", "safelight-testing"];

/// Packages that a client of the HTTP API must not bring with it: drivers and codecs.
const NOT_IN_A_CLIENT: [&str; 8] =
    ["image", "lapin", "object_store", "rav1e", "redis", "sqlx", "turbojpeg", "webp"];

/// Dependencies that no code names: they are declared for a feature that they switch on.
const FOR_A_FEATURE: [(&str, &str); 3] = [
    ("safelight", "safelight-fail-points"),
    ("safelight-blobs", "reqwest"),
    ("safelight-telemetry", "opentelemetry-http"),
];

/// Packages whose crate has another name.
const CRATE_NAMES: [(&str, &str); 1] = [("kamadak-exif", "exif")];

/// Each crate of ours with all crates of ours under it, by normal dependencies.
fn reachable(members: &[Member]) -> BTreeMap<&str, BTreeSet<&str>> {
    let direct: BTreeMap<&str, Vec<&str>> = members
        .iter()
        .map(|member| {
            let normal = member.dependencies.iter().filter(|dependency| dependency.normal);
            (member.name.as_str(), normal.map(|dependency| dependency.name.as_str()).collect())
        })
        .collect();
    let all = |from: &'_ str| {
        let (mut found, mut left) = (BTreeSet::new(), direct[from].clone());
        while let Some(name) = left.pop() {
            if found.insert(name) {
                left.extend(direct.get(name).into_iter().flatten());
            }
        }
        found
    };
    members.iter().map(|member| (member.name.as_str(), all(&member.name))).collect()
}

#[test]
fn the_domain_depends_on_no_other_crate_of_ours() -> Result<()> {
    let members = members()?;
    let reachable = reachable(&members);
    let ours: Vec<_> =
        reachable["safelight-domain"].iter().filter(|name| reachable.contains_key(*name)).collect();
    assert!(ours.is_empty(), "{ours:?}");
    Ok(())
}

#[test]
fn parts_do_not_see_each_other() -> Result<()> {
    let members = members()?;
    let reachable = reachable(&members);
    for part in PARTS {
        let seen: Vec<_> = PARTS.iter().filter(|other| reachable[part].contains(*other)).collect();
        assert!(seen.is_empty(), "{part} sees {seen:?}");
    }
    Ok(())
}

#[test]
fn drivers_are_seen_by_the_binary_and_by_tests_alone() -> Result<()> {
    for member in members()? {
        let normal = member.dependencies.iter().filter(|dependency| dependency.normal);
        let drivers: Vec<_> =
            normal.map(|one| &one.name).filter(|name| DRIVERS.contains(&name.as_str())).collect();
        let may = DRIVERS_ARE_SEEN_BY.contains(&member.name.as_str());
        assert!(may || drivers.is_empty(), "{} sees {drivers:?}", member.name);
    }
    Ok(())
}

#[test]
fn api_and_workers_do_not_see_each_other() -> Result<()> {
    let members = members()?;
    let reachable = reachable(&members);
    assert!(!reachable["safelight-api"].contains("safelight-workers"));
    assert!(!reachable["safelight-workers"].contains("safelight-api"));
    Ok(())
}

#[test]
fn the_client_brings_no_driver_and_no_codec() -> Result<()> {
    let members = members()?;
    let reachable = reachable(&members);
    let brought: Vec<_> = NOT_IN_A_CLIENT
        .iter()
        .filter(|package| reachable["safelight-client"].contains(*package))
        .collect();
    assert!(brought.is_empty(), "{brought:?}");
    Ok(())
}

#[test]
fn every_declared_dependency_is_used() -> Result<()> {
    let mut unused = BTreeSet::new();
    for member in members()? {
        let everywhere = member.sources(&["src", "tests", "benches", "fuzz_targets"])?;
        let shipped = member.sources(&["src"])?;
        for dependency in &member.dependencies {
            let other_name = CRATE_NAMES.iter().find(|(package, _)| *package == dependency.name);
            let name =
                other_name.map_or(dependency.name.as_str(), |(_, name)| *name).replace('-', "_");
            let sources = if dependency.normal { &shipped } else { &everywhere };
            let pair = (member.name.as_str(), dependency.name.as_str());
            if !FOR_A_FEATURE.contains(&pair)
                && !sources.iter().any(|source| mentions(&source.code, &name))
            {
                unused.insert(format!("{} {}", pair.0, pair.1));
            }
        }
    }
    assert!(unused.is_empty(), "declared and not used: {unused:#?}");
    Ok(())
}

/// Whether code names a crate: `name::`, `use name;` or `extern crate`.
fn mentions(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + name.len()..];
        let whole = !before.is_some_and(|c| c.is_alphanumeric() || c == '_');
        whole && (after.starts_with("::") || after.starts_with(';') || after.starts_with(" as "))
    })
}
