//! `make chaos`: every scenario of `safelight_testing::scenarios`, and a table of what was lost, stuck, wrong and left.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use safelight_testing::{
    scenarios::{ALL, Outcome, Scenario, Setting},
    server::find_binary,
};
use serde_json::json;

/// Runs one fault after the other against real deployments, and audits each. Prints a table, and a line of JSON for
/// each fault. Exits with 1 if any count but `accepted` and `reported` is not zero. Needs root and loop devices.
#[derive(Parser)]
struct Options {
    /// Only these scenarios; `--list` prints their names
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Length of outages, as a part of one to two minutes
    #[arg(long, default_value_t = 0.25)]
    scale: f64,
    /// Print the names of all scenarios
    #[arg(long)]
    list: bool,
    /// The safelight binary (default: the one in the directory of this program)
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// A scenario that has ended.
struct Row {
    scenario: &'static Scenario,
    outcome: Result<Outcome>,
    seconds: f64,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let options = Options::parse();
    if options.list {
        for scenario in ALL {
            println!("{:<18} {}", scenario.name, scenario.fault);
        }
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(options.scale > 0.0 && options.scale <= 1.0, "--scale must be above 0, and at most 1");
    for name in &options.only {
        let is_known = ALL.iter().any(|scenario| scenario.name == name);
        ensure!(is_known, "no scenario {name}; hint: --list prints their names");
    }
    let setting = Setting { binary: find_binary(options.binary.as_deref())?, scale: options.scale };
    let wanted = |scenario: &&Scenario| {
        options.only.is_empty() || options.only.contains(&scenario.name.to_owned())
    };
    let mut rows = Vec::new();
    for scenario in ALL.iter().filter(wanted) {
        eprintln!("{}: {} …", scenario.name, scenario.fault);
        let started = Instant::now();
        let outcome = scenario.run(setting.clone()).await;
        let row = Row { scenario, outcome, seconds: started.elapsed().as_secs_f64() };
        print_line(&row, &setting);
        rows.push(row);
    }
    print_table(&rows);
    let is_clean =
        |row: &Row| row.outcome.as_ref().is_ok_and(safelight_testing::scenarios::Outcome::is_clean);
    Ok(if rows.iter().all(is_clean) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints the counts as JSON, and everything that was found on standard error.
fn print_line(row: &Row, setting: &Setting) {
    let mut line = match &row.outcome {
        Ok(outcome) => outcome.counts(),
        Err(error) => json!({ "error": format!("{error:#}") }),
    };
    line["scenario"] = row.scenario.name.into();
    line["scale"] = setting.scale.into();
    line["seconds"] = row.seconds.round().into();
    println!("{line}");
    match &row.outcome {
        Ok(outcome) if outcome.is_clean() => {}
        Ok(outcome) => eprintln!("{outcome:#?}"),
        Err(error) => eprintln!("{error:?}"),
    }
}

/// Prints all counts as a table in Markdown.
fn print_table(rows: &[Row]) {
    println!("\n| fault | accepted | lost | stuck | wrong | left | broken | reported |");
    println!("|---|---|---|---|---|---|---|---|");
    for row in rows {
        let fault = row.scenario.fault;
        match &row.outcome {
            Ok(outcome) => {
                let counts = outcome.findings().map(|(_, list)| list.len().to_string()).join(" | ");
                println!("| {fault} | {} | {counts} | {} |", outcome.accepted, outcome.reported);
            }
            Err(error) => println!("| {fault} | it ended early: {error:#} |"),
        }
    }
}
