//! /proc/PID/limits: getrlimit(2) from outside.

use super::{ProcError, read_text};

/// The names of its lines, in the order of the limits' numbers.
pub const LIMITS: [&str; 16] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// The 16 limits in `directory`/limits, soft and hard, by number; `u64::MAX` for unlimited.
///
/// # Errors
/// [`ProcError`].
pub fn limits(directory: &str) -> Result<Vec<(u64, u64)>, ProcError> {
    let path = format!("{directory}/limits");
    let text = read_text(&path)?;
    parse(&text).map_err(|field| ProcError::Field { path, field })
}

fn parse(text: &str) -> Result<Vec<(u64, u64)>, &'static str> {
    let value = |word: &str| {
        if word == "unlimited" {
            Some(u64::MAX)
        } else {
            word.parse().ok()
        }
    };
    let limit = |name: &&'static str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or(*name)?;
        let mut words = line.split_ascii_whitespace().map(value);
        match (words.next().flatten(), words.next().flatten()) {
            (Some(soft), Some(hard)) => Ok((soft, hard)),
            _ => Err(*name),
        }
    };
    LIMITS.iter().map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::{LIMITS, parse};

    #[test]
    fn reads_limits_by_number() {
        let head = "Limit                     Soft Limit           Hard Limit           Units\n";
        let line = |(number, name): (usize, &&str)| format!("{name:<26}{number:<21}unlimited            units\n");
        let text: String = std::iter::once(head.to_owned())
            .chain(LIMITS.iter().enumerate().map(line))
            .collect();
        let limits = parse(&text).expect("good text");
        assert_eq!((limits.len(), limits[7]), (16, (7, u64::MAX)));
        assert_eq!(parse(head), Err("Max cpu time"));
    }
}
