//! What the user says of ends and files that are outside, when a tree is saved: `--external`.

use std::str::FromStr;

/// One of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// `unix:PATH`, `unix:@NAME`: unix sockets that are connected with one of this name connect with it anew. The bytes are
    /// as in `sun_path`.
    Peer(Vec<u8>),
    /// `LINK=NAME`: what /proc/PID/fd shows by this link is given by this name at a restore.
    Named {
        /// Target of the link.
        link: String,
        /// What the user calls it.
        name: String,
    },
}

/// What is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Neither form.
    #[error("{0:?} is neither unix:PATH nor LINK=NAME, e.g. unix:/run/service, pipe:[12345]=log, /dev/ttyS0=console")]
    Form(String),
    /// A name of a socket that floe can't look up.
    #[error("{0:?} is no absolute path, nor @ and an abstract name")]
    Path(String),
    /// A name that would be hard to give.
    #[error("{0:?} is no name: letters, digits, dots, - and _ are")]
    Name(String),
    /// A link or a name that two rules have.
    #[error("{0:?} is in two rules: each file has one link and is given by a name of its own")]
    Twice(String),
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if let Some(place) = text.strip_prefix("unix:") {
            return match place.strip_prefix('@') {
                Some(name) if !name.is_empty() => Ok(Self::Peer([&[0], name.as_bytes()].concat())),
                None if place.starts_with('/') => Ok(Self::Peer(place.as_bytes().to_vec())),
                _ => Err(RuleError::Path(place.to_owned())),
            };
        }
        match text.rsplit_once('=') {
            Some((link, name)) if !link.is_empty() => Ok(Self::Named {
                link: link.to_owned(),
                name: name_of(name)?,
            }),
            _ => Err(RuleError::Form(text.to_owned())),
        }
    }
}

/// A name as the user gives it.
pub(super) fn name_of(text: &str) -> Result<String, RuleError> {
    let is_possible = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    if text.is_empty() || !text.chars().all(is_possible) {
        return Err(RuleError::Name(text.to_owned()));
    }
    Ok(text.to_owned())
}

/// Datagram sockets with which a program does nothing but tell the system's log, so that it goes on there as well.
const LOGS: [&[u8]; 3] = [
    b"/dev/log",
    b"/run/systemd/journal/dev-log",
    b"/run/systemd/journal/socket",
];

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Externals {
    peers: Vec<Vec<u8>>,
    named: Vec<(Vec<u8>, String)>,
}

impl Externals {
    /// From the user's rules.
    ///
    /// # Errors
    /// [`RuleError::Twice`].
    pub fn new(rules: Vec<Rule>) -> Result<Self, RuleError> {
        let mut all = Self::default();
        for rule in rules {
            match rule {
                Rule::Peer(name) => all.peers.push(name),
                Rule::Named { link, name } => {
                    if all.name_of(link.as_bytes()).is_some() {
                        return Err(RuleError::Twice(link));
                    }
                    if all.named.iter().any(|(_, other)| *other == name) {
                        return Err(RuleError::Twice(name));
                    }
                    all.named.push((link.into_bytes(), name));
                }
            }
        }
        Ok(all)
    }

    /// What the user calls the file behind a link of /proc/PID/fd.
    pub(super) fn name_of(&self, link: &[u8]) -> Option<&str> {
        let found = self.named.iter().find(|(named, _)| named == link);
        found.map(|(_, name)| name.as_str())
    }

    /// Links that were named and that none of the files `is_there` has.
    pub(in crate::file) fn unused(&self, is_there: impl Fn(&[u8]) -> bool) -> impl Iterator<Item = &[u8]> {
        let links = self.named.iter().map(|(link, _)| link.as_slice());
        links.filter(move |link| !is_there(link))
    }

    /// Whether a unix socket (SOCK_*) may connect anew with one of this name.
    pub(in crate::file) fn permits_peer(&self, name: &[u8], kind: i32) -> bool {
        kind == libc::SOCK_DGRAM && LOGS.contains(&name) || self.peers.iter().any(|peer| peer == name)
    }
}

#[cfg(test)]
mod tests {
    use super::{Externals, Rule, RuleError};

    #[test]
    fn rules_are_read() {
        let rule = |text: &str| text.parse::<Rule>();
        assert_eq!(rule("unix:/run/x"), Ok(Rule::Peer(b"/run/x".to_vec())));
        assert_eq!(rule("unix:@x"), Ok(Rule::Peer(b"\0x".to_vec())));
        let named = Rule::Named {
            link: "pipe:[12]".to_owned(),
            name: "log".to_owned(),
        };
        assert_eq!(rule("pipe:[12]=log"), Ok(named));
        for none in ["unix:x", "unix:@", "unix:"] {
            assert!(matches!(rule(none), Err(RuleError::Path(_))), "{none}");
        }
        assert!(matches!(rule("pipe:[12]"), Err(RuleError::Form(_))));
        assert!(matches!(rule("=log"), Err(RuleError::Form(_))));
        assert!(matches!(rule("/a=b=a b"), Err(RuleError::Name(_))));
    }

    #[test]
    fn links_and_names_are_in_one_rule_each() {
        let rules =
            |texts: [&str; 2]| Externals::new(texts.map(|text| text.parse().expect("a rule")).to_vec()).map(drop);
        assert_eq!(rules(["/a=one", "/b=two"]), Ok(()));
        assert_eq!(rules(["/a=one", "/b=one"]), Err(RuleError::Twice("one".to_owned())));
        assert_eq!(rules(["/a=one", "/a=two"]), Err(RuleError::Twice("/a".to_owned())));
    }

    #[test]
    fn the_systems_log_needs_no_rule() {
        let rules = Externals::new(vec![Rule::Peer(b"/run/bus".to_vec())]).expect("a rule");
        assert!(rules.permits_peer(b"/dev/log", libc::SOCK_DGRAM));
        assert!(!rules.permits_peer(b"/dev/log", libc::SOCK_STREAM));
        assert!(rules.permits_peer(b"/run/bus", libc::SOCK_STREAM));
        assert!(!rules.permits_peer(b"/run/other", libc::SOCK_DGRAM));
    }
}
