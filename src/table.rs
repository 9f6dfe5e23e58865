//! Lists of documents: as JSON for scripts, as a table for people.

use std::io::{self, IsTerminal};

use serde_json::Value;

use crate::say::say;

/// Prints each of `documents`: one JSON object per line; or as a row of aligned columns, under a header
/// if a person is looking.
pub fn print<const N: usize>(
    documents: &Value,
    as_json: bool,
    header: [&str; N],
    row: impl Fn(&Value) -> [String; N],
) {
    let documents = documents.as_array().map(Vec::as_slice).unwrap_or_default();
    if as_json {
        for document in documents {
            say!("{document}");
        }
        return;
    }
    let mut rows: Vec<[String; N]> = documents.iter().map(row).collect();
    if io::stdout().is_terminal() {
        rows.insert(0, header.map(str::to_owned));
    }
    for line in aligned(&rows) {
        say!("{line}");
    }
}

/// A value in a cell; a dash for nothing.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Lines in which columns begin below each other.
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
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows =
            [["ID", "HOST"], ["7", "höst"], ["12345", "b"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), ["ID     HOST", "7      höst", "12345  b"]);
        assert_eq!(aligned::<2>(&[]), Vec::<String>::new());
    }
}
