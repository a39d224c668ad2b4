//! Terminals: settings as bytes, window sizes, raw mode as a guard.

use nix::{
    errno::Errno,
    sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
};

/// Settings of a terminal: `struct termios2` as TCGETS2 gives it, include/uapi/asm-generic/termbits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSettings([u8; Self::BYTES]);

const TCGETS2: libc::c_ulong = nix::request_code_read!(b'T', 0x2A, TerminalSettings::BYTES);
const TCSETS2: libc::c_ulong = nix::request_code_write!(b'T', 0x2B, TerminalSettings::BYTES);

impl TerminalSettings {
    /// Bytes of the structure.
    pub const BYTES: usize = 44;

    /// Takes the structure's bytes; `None` where there are not exactly [`Self::BYTES`].
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The structure's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads a terminal's.
    ///
    /// # Errors
    /// ENOTTY.
    pub fn read(terminal: RawFd) -> io::Result<Self> {
        let mut settings = Self([0; Self::BYTES]);
        floe_sys::terminal::control(terminal, TCGETS2, &mut settings.0)?;
        Ok(settings)
    }

    /// Sets a terminal's.
    ///
    /// # Errors
    /// ENOTTY, EIO.
    pub fn apply(&self, terminal: RawFd) -> io::Result<()> {
        floe_sys::terminal::control(terminal, TCSETS2, &mut self.0.clone())?;
        Ok(())
    }
}

/// Rows and columns of a terminal; `None` where it is none.
#[must_use]
pub fn window_size(terminal: RawFd) -> Option<(u16, u16)> {
    let mut bytes = [0u8; 8];
    floe_sys::terminal::control(terminal, libc::TIOCGWINSZ, &mut bytes).ok()?;
    let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    Some((word(0), word(2)))
}

/// Sets rows and columns.
pub(crate) fn set_window_size(terminal: RawFd, rows: u16, cols: u16) -> Result<(), Errno> {
    let mut bytes = [rows.to_ne_bytes(), cols.to_ne_bytes(), [0; 2], [0; 2]].concat();
    floe_sys::terminal::control(terminal, libc::TIOCSWINSZ, &mut bytes).map(drop)
}

/// Makes the number of a fresh pseudo-terminal usable and returns it.
pub(crate) fn unlock(master: RawFd) -> Result<u32, Errno> {
    floe_sys::terminal::control(master, libc::TIOCSPTLCK, &mut 0i32.to_ne_bytes())?;
    let mut number = [0; 4];
    floe_sys::terminal::control(master, libc::TIOCGPTN, &mut number)?;
    Ok(u32::from_ne_bytes(number))
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
