//! Dependencies between the files of a crate, read from their `use` declarations and paths.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result};

use super::sources::{Source, members};

/// The modules of a crate, by path (`delivery::cache`; the root is empty).
type Modules = BTreeMap<String, Module>;

#[derive(Default)]
struct Module {
    /// The code outside tests, without comments and re-exports (`pub use child::Name`).
    code: String,
    /// The re-exported names and their original paths.
    reexports: BTreeMap<String, Vec<String>>,
}

/// The top modules of a crate in layers, lowest first.
type Layers = &'static [&'static [&'static str]];

/// A module imports only from its own layer and the layers below it.
const LAYERS: [(&str, Layers); 2] = [
    (
        "safelight-api",
        &[
            &["http"],
            &["auth", "delivery", "fleet", "limits", "presets", "readiness", "uploads", "watch"],
            &["state"],
            &["routes"],
            &["guard", "openapi", "router"],
            &["server"],
        ],
    ),
    (
        "safelight-workers",
        &[
            &["parts", "removal", "retry_policy"],
            &["jobs"],
            &["backfill", "maintenance"],
            &["consumer"],
            &["services"],
        ],
    ),
];

#[test]
fn modules_import_only_from_their_own_and_lower_layers() -> Result<()> {
    let members = members()?;
    for (name, layers) in LAYERS {
        let member = members.iter().find(|member| member.name == name).context(name)?;
        let modules = modules(&member.folder.join("src"), &member.sources(&["src"])?);
        let edges = edges(&modules);
        let upward = upward(&edges, layers);
        assert!(upward.is_empty(), "{name}: imports from a higher layer: {upward:#?}");
        let used: BTreeSet<_> = edges.keys().map(|module| top(module)).collect();
        let unused: Vec<_> =
            layers.concat().into_iter().filter(|one| !used.contains(one)).collect();
        assert!(unused.is_empty(), "{name}: layers name modules that do not exist: {unused:?}");
    }
    Ok(())
}

/// The imports from a higher layer, and the modules that are in no layer.
fn upward(edges: &BTreeMap<&str, BTreeSet<&str>>, layers: Layers) -> Vec<String> {
    let layer = |module: &str| layers.iter().position(|layer| layer.contains(&top(module)));
    let mut found = Vec::new();
    // The root only declares and re-exports.
    for (module, used) in edges.iter().filter(|(module, _)| !module.is_empty()) {
        let Some(own) = layer(module) else {
            found.push(format!("{module} is in no layer"));
            continue;
        };
        let higher = used.iter().filter(|other| layer(other) > Some(own));
        found.extend(higher.map(|other| format!("{module} -> {other}")));
    }
    found
}

/// The top module that a module belongs to.
fn top(module: &str) -> &str {
    module.split("::").next().unwrap_or_default()
}

#[test]
fn no_crate_has_a_cycle_of_files() -> Result<()> {
    let mut found = BTreeSet::new();
    for member in members()? {
        let root = member.folder.join("src");
        let modules = modules(&root, &member.sources(&["src"])?);
        for cycle in cycles(&edges(&modules)) {
            found.insert(format!("{}: {}", member.name, cycle.join(" ")));
        }
    }
    assert!(found.is_empty(), "cycles of files: {found:#?}");
    Ok(())
}

fn modules(root: &Path, sources: &[Source]) -> Modules {
    let mut modules = Modules::new();
    for source in sources {
        let Ok(path) = source.path.strip_prefix(root) else { continue };
        let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        // Skips binaries, which are separate crates, and tests.
        if parts[0] == "bin" || parts.iter().any(|part| part == "tests" || part == "tests.rs") {
            continue;
        }
        let stem = path.with_extension("");
        let mut names: Vec<_> =
            stem.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if names.last().is_some_and(|name| ["mod", "lib", "main"].contains(&name.as_str())) {
            names.pop();
        }
        modules.insert(names.join("::"), module(&without_tests(&source.code)));
    }
    modules
}

/// Separates a module's `pub use` declarations from the rest of its code.
fn module(code: &str) -> Module {
    let mut module = Module::default();
    let mut rest = code;
    let reexport = |rest: &str| {
        ["pub use ", "pub(crate) use "].iter().filter_map(|start| rest.find(start)).min()
    };
    while let Some(at) = reexport(rest) {
        let end = rest[at..].find(';').map_or(rest.len(), |end| at + end);
        let mut paths = Vec::new();
        let start = rest[at..].find("use ").map_or(at, |start| at + start + "use ".len());
        expand(&rest[start..end], &[], &mut paths);
        for path in paths {
            if let Some(name) = path.last().cloned() {
                module.reexports.insert(name, path);
            }
        }
        module.code += &rest[..at];
        rest = &rest[end..];
    }
    module.code += rest;
    module
}

fn without_tests(code: &str) -> String {
    let code = code.split("\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules that each module uses, except the root: it only declares and re-exports.
fn edges(modules: &Modules) -> BTreeMap<&str, BTreeSet<&str>> {
    modules
        .iter()
        .map(|(module, Module { code, .. })| {
            let own: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
            let mut used = BTreeSet::new();
            for path in paths(code, &children(modules, &own)) {
                let Some(target) = resolve(&own, &path) else { continue };
                if let Some(found) = file_of(modules, &target)
                    && found != module
                    && !found.is_empty()
                {
                    used.insert(found);
                }
            }
            (module.as_str(), used)
        })
        .collect()
}

/// The names of a module's children.
fn children(modules: &Modules, module: &[&str]) -> Vec<String> {
    let parts = |name: &String| name.split("::").map(str::to_owned).collect::<Vec<_>>();
    let below = modules.keys().map(parts).filter(|parts| {
        parts.len() == module.len() + 1 && parts.iter().zip(module).all(|(part, own)| part == own)
    });
    below.filter_map(|mut parts| parts.pop()).filter(|name| !name.is_empty()).collect()
}

/// Every path that starts with `crate`, `super` or the name of a child, with `use` groups expanded.
fn paths(code: &str, children: &[String]) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let starts = ["crate", "super"].into_iter().chain(children.iter().map(String::as_str));
    for start in starts.map(|start| format!("{start}::")) {
        for (at, _) in code.match_indices(&start) {
            let before = code[..at].chars().next_back();
            // In `super::super::`, only the first `super` starts a path.
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            expand(&code[at..], &[], &mut paths);
        }
    }
    paths
}

/// Adds all paths of the use tree at the start of `text`. Returns the text after the tree.
fn expand<'a>(text: &'a str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> &'a str {
    let mut path = prefix.to_vec();
    let mut text = text.trim_start();
    loop {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        if end > 0 {
            path.push(text[..end].to_owned());
        }
        text = &text[end..];
        let Some(rest) = text.strip_prefix("::") else { break };
        text = rest.trim_start();
        if let Some(mut rest) = text.strip_prefix('{') {
            while !rest.trim_start().starts_with('}') && !rest.trim().is_empty() {
                rest = expand(rest, &path, paths).trim_start();
                // Skip an `as` name and the comma.
                let next = rest.find([',', '}']).unwrap_or(rest.len());
                rest = &rest[next..];
                rest = rest.strip_prefix(',').unwrap_or(rest);
            }
            return rest.trim_start().strip_prefix('}').unwrap_or(rest);
        }
    }
    paths.push(path);
    text
}

/// The path from the crate's root, without `crate`, `super` and `self`.
fn resolve(module: &[&str], path: &[String]) -> Option<Vec<String>> {
    let mut target: Vec<String> = module.iter().map(|&part| part.to_owned()).collect();
    for (index, part) in path.iter().enumerate() {
        match part.as_str() {
            "crate" if index == 0 => target.clear(),
            "super" => drop(target.pop()?),
            "self" => {}
            name => target.push(name.to_owned()),
        }
    }
    Some(target)
}

/// The module that a path points to or into. Follows re-exports.
fn file_of<'a>(modules: &'a Modules, path: &[String]) -> Option<&'a str> {
    let (length, (name, module)) = (0..=path.len()).rev().find_map(|length| {
        modules.get_key_value(&path[..length].join("::")).map(|found| (length, found))
    })?;
    let reexport = path.get(length).and_then(|next| module.reexports.get(next));
    if let Some(from) = reexport {
        let own: Vec<&str> = name.split("::").filter(|part| !part.is_empty()).collect();
        let target = resolve(&own, from).filter(|target| target.as_slice() != path);
        return target.and_then(|target| file_of(modules, &target)).or(Some(name));
    }
    Some(name)
}

/// Groups of modules that all reach each other.
fn cycles(edges: &BTreeMap<&str, BTreeSet<&str>>) -> BTreeSet<Vec<String>> {
    let reach = |from: &str| {
        let mut pending: Vec<&str> = edges[from].iter().copied().collect();
        let mut found = BTreeSet::new();
        while let Some(next) = pending.pop() {
            if found.insert(next) {
                pending.extend(edges.get(next).into_iter().flatten());
            }
        }
        found
    };
    let all: BTreeMap<_, _> = edges.keys().map(|&module| (module, reach(module))).collect();
    let cycle = |module: &str| -> Vec<String> {
        let mutual = all[module].iter().filter(|other| all[*other].contains(module));
        mutual.map(|&other| other.to_owned()).collect()
    };
    all.keys().map(|module| cycle(module)).filter(|cycle| !cycle.is_empty()).collect()
}

#[test]
fn use_groups_are_expanded() {
    let code = "use crate::{a::{b, c as d}, e};\nuse super::super::f;\nlet x = crate::g::h();";
    let found: Vec<_> = paths(code, &[]).into_iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["crate::a::b", "crate::a::c", "crate::e", "crate::g::h", "super::super::f"]);
}

#[test]
fn cycle_search_finds_cycles_and_ignores_diamonds() {
    let edges = |pairs: &[(&'static str, &[&'static str])]| {
        pairs.iter().map(|(from, to)| (*from, to.iter().copied().collect())).collect()
    };
    let diamond = edges(&[("a", &["b", "c"]), ("b", &["d"]), ("c", &["d"]), ("d", &[])]);
    assert!(cycles(&diamond).is_empty());
    let cycle = edges(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]);
    assert_eq!(cycles(&cycle), BTreeSet::from([vec!["b".to_owned(), "c".to_owned()]]));
}

#[test]
fn layer_check_finds_upward_imports_and_unknown_modules() {
    let edges = BTreeMap::from([
        ("high", BTreeSet::from(["high::child", "low"])),
        ("low::child", BTreeSet::from(["high::child"])),
        ("new", BTreeSet::new()),
    ]);
    let found = upward(&edges, &[&["low"], &["high"]]);
    assert_eq!(found, ["low::child -> high::child", "new is in no layer"]);
}
