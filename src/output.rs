//! What commands print: data on standard output, status messages on standard error, lists as tables or JSON.
//! A command continues its work when the reader closes the pipe (`safelight queues | head`).

use std::{
    fmt::Arguments,
    io::{ErrorKind, IsTerminal, Result, Write},
};

use serde_json::Value;

/// Prints a line of data on standard output, as `println!` does.
macro_rules! output {
    ($($text:tt)*) => { $crate::output::on_stdout(format_args!($($text)*)) };
}

/// Prints a status message on standard error, as `eprintln!` does.
macro_rules! status {
    ($($text:tt)*) => { $crate::output::on_stderr(format_args!($($text)*)) };
}

pub(crate) use {output, status};

/// Prints a line on standard output. A failed write ends the command with an error: a script must not take
/// half an answer for a complete one.
pub fn on_stdout(line: Arguments<'_>) {
    if let Err(error) = write_line(&mut std::io::stdout().lock(), line) {
        status!("error: cannot write to standard output: {error}");
        std::process::exit(1);
    }
}

/// Prints a line on standard error. A failed write is ignored.
pub fn on_stderr(line: Arguments<'_>) {
    // There is nowhere left to report it.
    let _ = write_line(&mut std::io::stderr().lock(), line);
}

fn write_line(out: &mut impl Write, line: Arguments<'_>) -> Result<()> {
    match writeln!(out, "{line}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Prints each of `documents`: as one JSON object per line, or as a row of aligned columns, under a header if
/// standard output is a terminal.
pub fn print_list<const N: usize>(
    documents: &Value,
    as_json: bool,
    header: [&str; N],
    row: impl Fn(&Value) -> [String; N],
) {
    let documents = documents.as_array().map(Vec::as_slice).unwrap_or_default();
    if as_json {
        for document in documents {
            output!("{document}");
        }
        return;
    }
    let mut rows: Vec<[String; N]> = documents.iter().map(row).collect();
    if std::io::stdout().is_terminal() {
        rows.insert(0, header.map(str::to_owned));
    }
    for line in aligned(&rows) {
        output!("{line}");
    }
}

/// A value as the text of a cell; a dash for null.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The rows as lines with aligned columns.
fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cells() {
        let rows =
            [["ID", "HOST"], ["7", "höst"], ["12345", "b"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), ["ID     HOST", "7      höst", "12345  b"]);
        assert_eq!(aligned::<2>(&[]), Vec::<String>::new());
    }
}
