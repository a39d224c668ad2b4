//! Terminals: window sizes, raw mode as a guard.

use nix::{
    errno::Errno,
    sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
};

/// Size of a terminal's window: `struct winsize`, include/uapi/asm-generic/termios.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Rows, columns, pixels across, pixels down.
    pub words: [u16; 4],
}

impl WindowSize {
    /// A window whose pixels nobody knows.
    #[must_use]
    pub fn new(rows: u16, cols: u16) -> Self {
        Self {
            words: [rows, cols, 0, 0],
        }
    }

    /// Reads a terminal's.
    ///
    /// # Errors
    /// ENOTTY.
    pub fn read(terminal: RawFd) -> Result<Self, Errno> {
        let mut bytes = [0u8; 8];
        floe_sys::terminal::control(terminal, libc::TIOCGWINSZ, &mut bytes)?;
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Ok(Self {
            words: [word(0), word(2), word(4), word(6)],
        })
    }

    /// Sets a terminal's. Where that is a change, its foreground group gets SIGWINCH.
    ///
    /// # Errors
    /// ENOTTY, EIO.
    pub fn apply(&self, terminal: RawFd) -> Result<(), Errno> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        floe_sys::terminal::control(terminal, libc::TIOCSWINSZ, &mut bytes).map(drop)
    }
}

/// A terminal in raw mode; dropping it puts the old settings back.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Switches a terminal to raw mode; `None` where it is no terminal.
    ///
    /// # Errors
    /// Those of tcsetattr(3).
    pub fn enter(terminal: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let Ok(before) = tcgetattr(terminal) else {
            return Ok(None);
        };
        let terminal = terminal.try_clone_to_owned()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(terminal.as_fd(), SetArg::TCSANOW, &raw)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(self.terminal.as_fd(), SetArg::TCSANOW, &self.before) {
            tracing::debug!(%error, "the terminal is gone");
        }
    }
}
