//! All that is printed goes through here. A reader that has gone is no error.

use std::io::{self, Write};

/// A line on standard output.
pub fn line(text: &str) {
    write(&mut io::stdout().lock(), text);
}

/// A line on standard error.
pub fn error(text: &str) {
    write(&mut io::stderr().lock(), text);
}

/// A value as JSON on standard output.
pub fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

fn write(out: &mut impl Write, text: &str) {
    // Nobody is left to be told that nobody reads.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Rows with columns of equal width.
pub fn table(header: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let render = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        line(padded.join("  ").trim_end());
    };
    render(&mut header.iter().copied());
    for row in rows {
        render(&mut row.iter().map(String::as_str));
    }
}

/// Bytes with a unit.
pub fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// A number with the word for one or for several.
pub fn count(number: usize, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}
