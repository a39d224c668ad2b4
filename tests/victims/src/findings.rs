//! What a check found to differ.

use std::fmt::{Debug, Display};

/// The differences that one check found.
#[derive(Debug)]
pub struct Findings {
    sabotage: bool,
    list: Vec<String>,
}

impl Findings {
    /// No findings so far. With `sabotage` the check is to damage the state first.
    #[must_use]
    pub fn new(sabotage: bool) -> Self {
        Self {
            sabotage,
            list: Vec::new(),
        }
    }

    /// Whether the check is to damage the state before it looks at it.
    #[must_use]
    pub fn sabotage(&self) -> bool {
        self.sabotage
    }

    /// Notes that something differs.
    pub fn add(&mut self, what: impl Display) {
        self.list.push(what.to_string());
    }

    /// Notes `what` unless `holds`.
    pub fn that(&mut self, holds: bool, what: impl Display) {
        if !holds {
            self.add(what);
        }
    }

    /// Notes a difference between what was and what is.
    pub fn same<T: PartialEq + Debug + ?Sized>(&mut self, what: impl Display, before: &T, now: &T) {
        if before != now {
            self.add(format!("{what} was {before:?}, is {now:?}"));
        }
    }

    /// Unwraps, or notes the error.
    pub fn take<T, E: Display>(&mut self, what: impl Display, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(format!("{what}: {error}"));
                None
            }
        }
    }

    /// The findings as the text of a result file.
    #[must_use]
    pub fn verdict(&self) -> String {
        if self.list.is_empty() {
            "ok".to_owned()
        } else {
            format!("FAIL: {}", self.list.join("; "))
        }
    }
}
