//! A pseudo-terminal, as the programs on it know it: its slave's side.

use serde::{Deserialize, Serialize};

/// A terminal that programs have open, or had and will again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalRecord {
    /// Its number: it is /dev/pts/N.
    pub index: u32,
    /// The 44 bytes of `struct termios2`.
    #[serde(with = "serde_bytes")]
    pub settings: Vec<u8>,
    /// Settings that can't be changed (TIOCGLCKTRMIOS): the 36 bytes of `struct termios`.
    #[serde(with = "serde_bytes")]
    pub locked: Vec<u8>,
    /// Rows, columns, x pixels, y pixels.
    pub window: [u16; 4],
    /// User and group that own it.
    pub owner: [u32; 2],
    /// Permissions.
    pub mode: u32,
    /// TIOCEXCL.
    pub exclusive: bool,
    /// Whether its output is stopped.
    pub stopped: OutputStop,
    /// What was typed and no program has read.
    pub input: TerminalInput,
}

/// Whether output is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputStop {
    /// It is not.
    No,
    /// By the STOP character.
    Key,
    /// By TCXONC.
    Call,
}

/// What waits to be read from an end of a pseudo-terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalInput {
    /// What the line discipline has taken.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// Where in it lines end, lowest first. A byte of 0 that ends one is an end of file.
    pub ends: Vec<u32>,
    /// Whether the first line is what was there when editing of lines began.
    pub pushed: bool,
    /// Whether the next byte is to be taken as it is (LNEXT).
    pub quoting: bool,
    /// What there was no room for: the line discipline has not seen it yet.
    #[serde(with = "serde_bytes")]
    pub beyond: Vec<u8>,
}
