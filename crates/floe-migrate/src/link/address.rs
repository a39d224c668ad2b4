//! Where another floe is reached.

use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf, str::FromStr};

/// An address, as it is written on the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// `HOST:PORT`.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `ssh://[USER@]HOST[:PORT]`.
    Ssh {
        /// Host, perhaps with a user before it.
        destination: String,
        /// Port, where it is not the usual one.
        port: Option<u16>,
    },
}

/// What is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address: give HOST:PORT, unix:PATH or ssh://[USER@]HOST[:PORT]")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || AddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(bad()),
                // Records outlive the folder that floe is in.
                path => std::path::absolute(path).map(Self::Unix).map_err(|_| bad()),
            };
        }
        if let Some(rest) = text.strip_prefix("ssh://") {
            let rest = rest.strip_suffix('/').unwrap_or(rest);
            let (destination, port) = match rest.rsplit_once(':') {
                // The colons of an IPv6 address stand in brackets.
                Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().map_err(|_| bad())?)),
                _ => (rest, None),
            };
            // ssh would take what begins with a dash for an option.
            let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'\'' | b'"' | b'`' | b'$' | b';');
            let host = destination.rsplit_once('@').map_or(destination, |(_, host)| host);
            if host.is_empty()
                || host.starts_with('-')
                || destination.starts_with('-')
                || !destination.bytes().all(plain)
            {
                return Err(bad());
            }
            let destination = destination.replace(['[', ']'], "");
            return Ok(Self::Ssh { destination, port });
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(bad());
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(text) => f.write_str(text),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Ssh { destination, port } => {
                let (user, host) = match destination.rsplit_once('@') {
                    Some((user, host)) => (format!("{user}@"), host),
                    None => (String::new(), destination.as_str()),
                };
                let host = match host.contains(':') {
                    true => format!("[{host}]"),
                    false => host.to_owned(),
                };
                let port = port.map_or(String::new(), |port| format!(":{port}"));
                write!(f, "ssh://{user}{host}{port}")
            }
        }
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn addresses_are_what_is_written() {
        for text in [
            "host:7",
            "[::1]:7000",
            "unix:/run/x",
            "ssh://host",
            "ssh://me@host:2222",
            "ssh://[fe80::1]",
            "ssh://me@[::1]:2222",
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
        for bad in [
            "",
            "host",
            "host:",
            ":7",
            "host:99999",
            "unix:",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://a@-x",
            "ssh://h;ls",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
