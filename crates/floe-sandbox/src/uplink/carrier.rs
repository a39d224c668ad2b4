//! The programs that can be between: which one is here, and what keeps it from being started.

use super::number;
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    process::{Command, Stdio},
};

/// A program that takes packets from a tap device, and makes connections of its own of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// pasta(1), of the package passt.
    Pasta,
    /// slirp4netns(1).
    Slirp4netns,
}

/// The first one that is installed is taken.
const CHOICE: [Carrier; 2] = [Carrier::Pasta, Carrier::Slirp4netns];

impl Carrier {
    /// The program.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pasta => "pasta",
            Self::Slirp4netns => "slirp4netns",
        }
    }

    /// The one that an ordinary user's sandbox goes by here, or what keeps it from having one, in words.
    ///
    /// # Errors
    /// What was attempted, and the error of starting a program.
    pub fn find() -> Result<Result<Self, String>, (Errno, String)> {
        let Some(carrier) = Self::installed()? else {
            let lacking = "there is neither pasta (package passt) nor slirp4netns here";
            return Ok(Err(lacking.to_owned()));
        };
        let tun = open("/dev/net/tun", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
        Ok(tun.map(|_| carrier).map_err(|error| {
            let name = carrier.name();
            format!("{name} needs /dev/net/tun, which can't be opened ({error})")
        }))
    }

    /// The first three bytes of addresses that stand for the host's loopback there, whose services are not the sandbox's.
    pub(crate) fn withheld(self) -> Option<[u8; 3]> {
        match self {
            // It has an option against that.
            Self::Pasta => None,
            Self::Slirp4netns => Some(super::slirp::NETWORK),
        }
    }

    fn installed() -> Result<Option<Self>, (Errno, String)> {
        for carrier in CHOICE {
            // Some versions do not end with 0 here.
            let mut asked = Command::new(carrier.name());
            let asked = asked.arg("--version").stdin(Stdio::null()).stdout(Stdio::null());
            match asked.stderr(Stdio::null()).status() {
                Ok(_) => return Ok(Some(carrier)),
                // Or it is not for everybody.
                Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied].contains(&error.kind()) => {}
                Err(error) => return Err((number(&error), format!("start {}", carrier.name()))),
            }
        }
        Ok(None)
    }
}
