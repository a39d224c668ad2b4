//! Terminals: settings as bytes, window sizes, raw mode as a guard.

use nix::{
    errno::Errno,
    sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
};
use serde::{Deserialize, Serialize};
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

    fn flags(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    fn local(&self, flag: u32) -> bool {
        self.flags(12) & flag != 0
    }

    /// Whether the kernel edits lines and gives them to programs when they end.
    #[must_use]
    pub fn is_canonical(&self) -> bool {
        self.local(libc::ICANON)
    }

    fn is_key(&self, key: usize, byte: u8) -> bool {
        // Behind four words of flags and the number of the line discipline; 0 is no key.
        byte != 0 && self.0[17 + key] == byte
    }

    /// Whether this byte, typed, leaves no unfinished line behind.
    pub(crate) fn ends_line(&self, byte: u8) -> bool {
        let signals = [libc::VINTR, libc::VQUIT, libc::VSUSP];
        let ends = [libc::VEOF, libc::VEOL, libc::VEOL2, libc::VKILL];
        let carriage_return = byte == b'\r' && self.flags(0) & libc::ICRNL != 0;
        let signal = self.local(libc::ISIG) && signals.iter().any(|key| self.is_key(*key, byte));
        let end = byte == b'\n' || carriage_return || ends.iter().any(|key| self.is_key(*key, byte));
        !self.is_canonical() || signal || end
    }

    /// Whether this byte, typed, takes back the one before.
    pub(crate) fn erases(&self, byte: u8) -> bool {
        self.is_key(libc::VERASE, byte)
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
