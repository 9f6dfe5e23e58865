//! `make mutants`: breaks one line after the other that `docs/reliability.md` relies on, and says
//! whether the test named there notices.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::Deserialize;

/// Applies each mutant of `tests/mutants.toml` to the sources, runs its test, and puts the sources
/// back. Exits with 1 if a mutant survives.
#[derive(Parser)]
struct Options {
    /// Only the mutants whose name contains one of these
    names: Vec<String>,
    /// Only check that each line is where it is said to be
    #[arg(long)]
    check: bool,
}

#[derive(Deserialize)]
struct Mutants {
    mutant: Vec<Mutant>,
}

/// One line broken.
#[derive(Deserialize)]
struct Mutant {
    name: String,
    file: PathBuf,
    /// Stands once in the file.
    find: String,
    replace: String,
    /// Arguments of `cargo test --workspace`.
    test: String,
}

/// What a test run says of a mutant.
#[derive(PartialEq, Eq)]
enum Verdict {
    Noticed,
    Survived,
    DoesNotCompile,
}

/// Puts a file back when dropped.
struct Broken<'a>(&'a Path, String);

impl Drop for Broken<'_> {
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
        let sound = source(mutant)?;
        if options.check {
            continue;
        }
        let broken = break_it(mutant, sound)?;
        let begun = Instant::now();
        let verdict = run(&mutant.test)?;
        drop(broken);
        let words = match verdict {
            Verdict::Noticed => "noticed",
            Verdict::Survived => "SURVIVED",
            Verdict::DoesNotCompile => "DOES NOT COMPILE",
        };
        println!("{:<32} {words} after {:.0} s", mutant.name, begun.elapsed().as_secs_f64());
        survivors += usize::from(verdict != Verdict::Noticed);
    }
    Ok(if survivors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The file as it is, with the line in it.
fn source(mutant: &Mutant) -> Result<String> {
    let file = mutant.file.display();
    let sound = fs::read_to_string(&mutant.file).with_context(|| file.to_string())?;
    let found = sound.matches(&mutant.find).count();
    ensure!(found == 1, "{}: found {found} times in {file}", mutant.name);
    Ok(sound)
}

fn break_it(mutant: &Mutant, sound: String) -> Result<Broken<'_>> {
    let mutated = sound.replace(&mutant.find, &mutant.replace);
    let broken = Broken(&mutant.file, sound);
    fs::write(&mutant.file, mutated)?;
    Ok(broken)
}

fn run(test: &str) -> Result<Verdict> {
    let build = ["test", "--workspace", "--no-run"];
    let target = test.split_whitespace().take_while(|argument| *argument != "--");
    // Warnings are to be expected of broken code.
    let compiles = Command::new("cargo").args(build).args(target).stderr(Stdio::null()).status()?;
    if !compiles.success() {
        return Ok(Verdict::DoesNotCompile);
    }
    let mut command = Command::new("cargo");
    command.args(["test", "--workspace"]).args(test.split_whitespace());
    let passed = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success();
    Ok(if passed { Verdict::Survived } else { Verdict::Noticed })
}
