//! /proc/PID/autogroup, sched(7).

use super::{ProcError, read_text};

/// The nice value of the autogroup of a task's session, given `/proc/PID`; `None` where it has none, or the kernel knows
/// no such groups.
///
/// # Errors
/// [`ProcError`].
pub fn autogroup_nice(directory: &str) -> Result<Option<i32>, ProcError> {
    let path = format!("{directory}/autogroup");
    match read_text(&path) {
        Ok(text) => parse(&text).map_err(|field| ProcError::Field { path, field }),
        Err(ProcError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// "/autogroup-NUMBER nice VALUE", or nothing.
fn parse(text: &str) -> Result<Option<i32>, &'static str> {
    let Some(value) = text.split_ascii_whitespace().last() else {
        return Ok(None);
    };
    value.parse().map(Some).map_err(|_| "nice")
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_the_nice_value() {
        assert_eq!(parse("/autogroup-103470 nice -5\n"), Ok(Some(-5)));
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("/autogroup-1 nice\n"), Err("nice"));
    }
}
