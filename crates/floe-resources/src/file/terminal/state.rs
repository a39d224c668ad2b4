//! What a terminal is like, read without taking or changing anything: by ioctl_tty(2), and what waits in it from the
//! kernel's memory.

use floe_image::record::{OutputStop, TerminalInput, TerminalRecord};
use floe_sys::{
    kernel::{StoppedOutput, TerminalEnd, TerminalLook, Terminals, WaitingInput},
    terminal::{TerminalSettings, control, number},
};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

/// How long the kernel has for moving what was written to the other end.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// include/uapi/asm-generic/ioctls.h.
const TIOCGEXCL: libc::c_ulong = 0x8004_5440;

/// Bytes of `struct termios`, include/uapi/asm-generic/termbits.h.
const LOCKED_BYTES: usize = 36;

/// No line discipline takes more at once, and no buffers of a pseudo-terminal hold more.
const MOST_TAKEN: usize = 4096;
const MOST_BEYOND: usize = 1 << 17;

/// A terminal that can't be carried.
#[derive(Debug)]
pub enum Unreadable {
    /// It could not be looked at.
    Failed(io::Error),
    /// What it is like, and what to do.
    Refused(&'static str, &'static str),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<nix::errno::Errno> for Unreadable {
    fn from(error: nix::errno::Errno) -> Self {
        Self::Failed(error.into())
    }
}

/// Reads the terminal behind `file`, which may be either end; `end` is its slave's.
///
/// # Errors
/// [`Unreadable`].
pub fn read(
    (kernel, end): (&Terminals, TerminalEnd),
    file: BorrowedFd<'_>,
    name: (u32, [u32; 2], u32),
) -> Result<(TerminalRecord, TerminalLook), Unreadable> {
    let look = kernel.look(end, PATIENCE)?;
    let record = TerminalRecord {
        exclusive: look.exclusive,
        stopped: match look.stopped {
            StoppedOutput::No => OutputStop::No,
            StoppedOutput::ByKey => OutputStop::Key,
            StoppedOutput::ByCall => OutputStop::Call,
        },
        input: input(&look)?,
        ..read_settings(file, name)?
    };
    Ok((record, look))
}

/// The same without what only the kernel's memory tells: what waits in it, and whether its output is stopped. `name` is
/// its number, its owner and permissions.
///
/// # Errors
/// Those of ioctl_tty(2).
pub fn read_settings(file: BorrowedFd<'_>, (index, owner, mode): (u32, [u32; 2], u32)) -> io::Result<TerminalRecord> {
    let settings = TerminalSettings::read(file.as_raw_fd())?;
    let mut window = [0; 8];
    control(file.as_raw_fd(), libc::TIOCGWINSZ, &mut window)?;
    let mut locked = [0; LOCKED_BYTES];
    control(file.as_raw_fd(), libc::TIOCGLCKTRMIOS, &mut locked)?;
    Ok(TerminalRecord {
        index,
        settings: settings.as_bytes().to_vec(),
        locked: locked.to_vec(),
        window: std::array::from_fn(|at| u16::from_ne_bytes([window[2 * at], window[2 * at + 1]])),
        owner,
        mode: mode & 0o7777,
        exclusive: number(file, TIOCGEXCL)? != 0,
        stopped: OutputStop::No,
        input: TerminalInput::default(),
    })
}

/// What waits in an end.
pub(super) fn input(look: &TerminalLook) -> Result<TerminalInput, Unreadable> {
    let Some(input) = &look.input else {
        return Err(Unreadable::Refused(
            "another line discipline than the usual one is not carried yet",
            "switch back to N_TTY",
        ));
    };
    let WaitingInput {
        bytes,
        ends,
        pushed,
        quoting,
        erasing,
        echoing,
        beyond,
    } = input.clone();
    if erasing || echoing {
        return Err(Unreadable::Refused(
            "echoes of what was typed wait to be put out",
            "let its output go on, and try again",
        ));
    }
    Ok(TerminalInput {
        bytes,
        ends,
        pushed,
        quoting,
        beyond,
    })
}

/// Whether there can be such a terminal; else why not.
///
/// # Errors
/// What is wrong.
pub fn check(record: &TerminalRecord) -> Result<(), String> {
    let sizes = (record.settings.len(), record.locked.len());
    if sizes != (TerminalSettings::BYTES, LOCKED_BYTES) {
        return Err("the settings of a terminal have another size".to_owned());
    }
    check_input(&record.input)
}

pub(super) fn check_input(input: &TerminalInput) -> Result<(), String> {
    let ascending = input.ends.is_sorted_by(|one, next| one < next);
    let inside = input
        .ends
        .last()
        .is_none_or(|last| (*last as usize) < input.bytes.len());
    if ascending && inside && input.bytes.len() <= MOST_TAKEN && input.beyond.len() <= MOST_BEYOND {
        Ok(())
    } else {
        Err("what waits in a terminal is impossible".to_owned())
    }
}
