//! All that is printed goes through here. A reader that has gone is no error. Names that come from a workload or an image
//! may hold anything, so control characters, which a terminal would obey, are shown as escapes.

use std::io::{self, Write};

/// Text on standard output, a line or several.
pub fn line(text: &str) {
    write(&mut io::stdout().lock(), &plain(text, &['\n', '\t']));
}

/// A line on standard error.
pub fn error(text: &str) {
    write(&mut io::stderr().lock(), &plain(text, &[]));
}

/// A value as JSON on standard output.
pub fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// The text without control characters but those that are `kept`.
fn plain(text: &str, kept: &[char]) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && !kept.contains(&character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

fn write(out: &mut impl Write, text: &str) {
    // Nobody is left to be told that nobody reads.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Rows with columns of equal width; without a line above where `header` is empty.
pub fn table(header: &[&str], rows: &[Vec<String>]) {
    let shown = |row: &Vec<String>| row.iter().map(|cell| plain(cell, &[])).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(shown).collect();
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    widths.resize(rows.first().map_or(0, Vec::len).max(header.len()), 0);
    for row in &rows {
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
    if !header.is_empty() {
        render(&mut header.iter().copied());
    }
    for row in rows {
        render(&mut row.iter().map(String::as_str));
    }
}

/// Rows for programs to read, with one blank between cells; blanks, backslashes and all that is not printed are escapes in them.
pub fn raw(header: &[&str], rows: &[Vec<String>]) {
    if !header.is_empty() {
        line(&header.join(" "));
    }
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| without_blanks(cell)).collect();
        line(&cells.join(" "));
    }
}

fn without_blanks(cell: &str) -> String {
    let mut shown = String::with_capacity(cell.len());
    for byte in cell.bytes() {
        if byte.is_ascii_graphic() && byte != b'\\' {
            shown.push(char::from(byte));
        } else {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

/// Bytes with a unit.
pub fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// A number with the word for one or for several.
pub fn count(number: usize, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

#[cfg(test)]
mod tests {
    use super::{plain, without_blanks};

    #[test]
    fn cells_for_programs_have_no_blanks() {
        assert_eq!(without_blanks("sleep 5\n\\é"), r"sleep\x205\x0a\x5c\xc3\xa9");
        assert_eq!(without_blanks(""), "");
    }

    #[test]
    fn control_characters_are_shown_as_escapes() {
        assert_eq!(
            plain("caf\u{e9} \u{1b}[2J\r\n\t\u{9b}", &[]),
            "caf\u{e9} \\u{1b}[2J\\r\\n\\t\\u{9b}"
        );
        assert_eq!(plain("a\nb\tc\u{7}", &['\n', '\t']), "a\nb\tc\\u{7}");
    }
}
