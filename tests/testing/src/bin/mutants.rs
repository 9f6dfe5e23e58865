//! `make mutants`: breaks each line of `tests/mutants.toml` in turn, and reports whether its test fails.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::Deserialize;

/// Applies each mutant of `tests/mutants.toml` to the sources, runs its test, and restores the sources. Exits
/// with 1 if a mutant survives.
#[derive(Parser)]
struct Options {
    /// Only the mutants whose name contains one of these
    names: Vec<String>,
    /// Only check that each `find` occurs exactly once in its file
    #[arg(long)]
    check: bool,
}

#[derive(Deserialize)]
struct Mutants {
    mutant: Vec<Mutant>,
}

/// A change that breaks one line.
#[derive(Deserialize)]
struct Mutant {
    name: String,
    file: PathBuf,
    /// Must occur exactly once in the file.
    find: String,
    replace: String,
    /// Arguments of `cargo test --workspace`.
    test: String,
}

/// The result of a mutant's test.
#[derive(PartialEq, Eq)]
enum Verdict {
    Noticed,
    Survived,
    DoesNotCompile,
}

/// Restores a file when dropped.
struct MutatedFile<'a>(&'a Path, String);

impl Drop for MutatedFile<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.0, &self.1) {
            eprintln!("cannot restore {}: {error}; hint: git checkout", self.0.display());
        }
    }
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let list = fs::read_to_string("tests/mutants.toml").context("run it in the repository")?;
    let mutants: Mutants = toml::from_str(&list)?;
    let wanted = |mutant: &&Mutant| {
        options.names.is_empty() || options.names.iter().any(|name| mutant.name.contains(name))
    };
    let mut survivors = 0;
    for mutant in mutants.mutant.iter().filter(wanted) {
        let original = read_original(mutant)?;
        if options.check {
            continue;
        }
        let mutated = apply(mutant, original)?;
        let started = Instant::now();
        let verdict = run(&mutant.test)?;
        drop(mutated);
        let words = match verdict {
            Verdict::Noticed => "noticed",
            Verdict::Survived => "SURVIVED",
            Verdict::DoesNotCompile => "DOES NOT COMPILE",
        };
        println!("{:<32} {words} after {:.0} s", mutant.name, started.elapsed().as_secs_f64());
        survivors += usize::from(verdict != Verdict::Noticed);
    }
    Ok(if survivors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads the file; fails unless it contains the line exactly once.
fn read_original(mutant: &Mutant) -> Result<String> {
    let file = mutant.file.display();
    let original = fs::read_to_string(&mutant.file).with_context(|| file.to_string())?;
    let found = original.matches(&mutant.find).count();
    ensure!(found == 1, "{}: found {found} times in {file}", mutant.name);
    Ok(original)
}

fn apply(mutant: &Mutant, original: String) -> Result<MutatedFile<'_>> {
    let content = original.replace(&mutant.find, &mutant.replace);
    let mutated = MutatedFile(&mutant.file, original);
    fs::write(&mutant.file, content)?;
    Ok(mutated)
}

fn run(test: &str) -> Result<Verdict> {
    let build = ["test", "--workspace", "--no-run"];
    let target = test.split_whitespace().take_while(|argument| *argument != "--");
    // Mutants cause warnings, so the output is dropped.
    let compiles = Command::new("cargo").args(build).args(target).stderr(Stdio::null()).status()?;
    if !compiles.success() {
        return Ok(Verdict::DoesNotCompile);
    }
    let mut command = Command::new("cargo");
    command.args(["test", "--workspace"]).args(test.split_whitespace());
    let passed = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success();
    Ok(if passed { Verdict::Survived } else { Verdict::Noticed })
}
