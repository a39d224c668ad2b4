//! Terminals, and what waits in them unread: drivers/tty. A reader would take it, and of a line that is still being typed
//! no call tells at all.
//!
//! ```text
//! written to the other end -> tty_port.buf: chain of tty_buffer -> n_tty_data.read_buf: a ring -> read
//!                                  "beyond": there is no room         lines, and one that has not ended
//! ```

use super::KernelMemory;
use std::{
    io,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

const STRUCTURES: [&str; 8] = [
    "tty_file_private",
    "tty_struct",
    "tty_port",
    "tty_bufhead",
    "tty_buffer",
    "tty_ldisc",
    "tty_ldisc_ops",
    "n_tty_data",
];

/// Bits of `tty_struct.flags`, include/linux/tty.h: those that are the same in all kernels.
mod flag {
    pub const IO_ERROR: u64 = 1 << 1;
    pub const OTHER_CLOSED: u64 = 1 << 2;
    pub const EXCLUSIVE: u64 = 1 << 3;
}

/// The usual line discipline, include/uapi/linux/tty.h.
const N_TTY: i32 = 0;

/// A pseudo-terminal's buffers take 8 KiB (pty_common_install), of which none is smaller than a byte.
const MOST_BUFFERS: usize = 1 << 14;
const MOST_BEYOND: usize = 1 << 17;

/// One end of a pseudo-terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TerminalEnd(u64);

/// Whether output through an end is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoppedOutput {
    /// It is not.
    No,
    /// By the STOP character; START lets it go on.
    ByKey,
    /// By TCXONC, which alone lets it go on.
    ByCall,
}

/// What waits to be read from an end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WaitingInput {
    /// What the line discipline has taken.
    pub bytes: Vec<u8>,
    /// Where in it lines end, where the end edits lines. A byte of 0 that ends one is an end of file.
    pub ends: Vec<u32>,
    /// Whether the first line is what was there when editing of lines began.
    pub pushed: bool,
    /// Whether the next byte is to be taken as it is (LNEXT).
    pub quoting: bool,
    /// Whether characters that are shown have just been erased (ECHOPRT).
    pub erasing: bool,
    /// Whether echoes have not been put out yet.
    pub echoing: bool,
    /// What the line discipline has had no room for.
    pub beyond: Vec<u8>,
}

/// What an end is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TerminalLook {
    /// Open file descriptions of a slave.
    pub open_files: u32,
    /// Whether the last of the other end's files was closed. A slave is used up then.
    pub other_closed: bool,
    /// TIOCEXCL.
    pub exclusive: bool,
    /// Whether reading and writing fail.
    pub broken: bool,
    /// Line discipline.
    pub discipline: i32,
    /// Output.
    pub stopped: StoppedOutput,
    /// What the other end, in packet mode, is told at its next read.
    pub packet_status: u8,
    /// Unread; `None` where the line discipline is not the usual one.
    pub input: Option<WaitingInput>,
}

/// The host's terminals.
pub struct Terminals(KernelMemory);

impl Terminals {
    /// Opens the kernel's memory.
    ///
    /// # Errors
    /// Those of [`aio_contexts`](super::aio_contexts).
    pub fn open() -> io::Result<Self> {
        KernelMemory::open(&STRUCTURES).map(Self)
    }

    /// The end that an open file, which must be one of a terminal, is of.
    ///
    /// # Errors
    /// Those of reading.
    pub fn end(&self, file: BorrowedFd<'_>) -> io::Result<TerminalEnd> {
        let private = self.0.member("file", self.0.file(file)?, "private_data")?;
        self.0.member("tty_file_private", private, "tty").map(TerminalEnd)
    }

    /// The other end; `None` where that is gone.
    ///
    /// # Errors
    /// Those of reading.
    pub fn other(&self, end: TerminalEnd) -> io::Result<Option<TerminalEnd>> {
        let other = self.0.member("tty_struct", end.0, "link")?;
        Ok((other != 0).then_some(TerminalEnd(other)))
    }

    /// Its number, N of /dev/pts/N.
    ///
    /// # Errors
    /// Those of reading.
    pub fn index(&self, end: TerminalEnd) -> io::Result<u32> {
        self.0.number("tty_struct", end.0, "index")
    }

    /// Looks at an end that nobody reads or writes meanwhile. The kernel may still be moving what was written; it has
    /// `patience` for that.
    ///
    /// # Errors
    /// Those of reading; `TimedOut`.
    pub fn look(&self, end: TerminalEnd, patience: Duration) -> io::Result<TerminalLook> {
        let limit = Instant::now() + patience;
        loop {
            if let Some(look) = self.try_look(end)? {
                return Ok(look);
            }
            if Instant::now() >= limit {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn byte(&self, structure: &'static str, address: u64, member: &str) -> io::Result<u8> {
        self.0.member(structure, address, member).map(|word| word as u8)
    }

    fn bit(&self, structure: &'static str, address: u64, member: &str) -> io::Result<bool> {
        let bit = self.0.types.bit(structure, member)?;
        Ok(self.0.word(address + bit / 8)? >> (bit % 8) & 1 != 0)
    }

    /// `None` where something is still being moved.
    fn try_look(&self, TerminalEnd(tty): TerminalEnd) -> io::Result<Option<TerminalLook>> {
        let flags = self.0.member("tty_struct", tty, "flags")?;
        let has = |bit| flags & bit != 0;
        let ldisc = self.0.member("tty_struct", tty, "ldisc")?;
        let discipline = match ldisc {
            0 => N_TTY,
            _ => {
                let ops = self.0.member("tty_ldisc", ldisc, "ops")?;
                self.0.number("tty_ldisc_ops", ops, "num")? as i32
            }
        };
        let data = self.0.member("tty_struct", tty, "disc_data")?;
        let input = match (discipline, data) {
            (N_TTY, 0) => Some(WaitingInput::default()),
            (N_TTY, data) => match self.input(tty, data)? {
                None => return Ok(None),
                found => found,
            },
            _ => None,
        };
        let by_call = self.byte("tty_struct", tty, "flow.tco_stopped")? != 0;
        let stopped = match self.byte("tty_struct", tty, "flow.stopped")? {
            0 => StoppedOutput::No,
            _ if by_call => StoppedOutput::ByCall,
            _ => StoppedOutput::ByKey,
        };
        Ok(Some(TerminalLook {
            // Of a slave the master counts for one.
            open_files: self.0.number("tty_struct", tty, "count")?.saturating_sub(1),
            other_closed: has(flag::OTHER_CLOSED),
            exclusive: has(flag::EXCLUSIVE),
            broken: has(flag::IO_ERROR),
            discipline,
            stopped,
            packet_status: self.byte("tty_struct", tty, "ctrl.pktstatus")?,
            input,
        }))
    }

    /// `None` where some of it is still on its way.
    fn input(&self, tty: u64, data: u64) -> io::Result<Option<WaitingInput>> {
        let number = |member| self.0.member("n_tty_data", data, member);
        let has_room = self.byte("n_tty_data", data, "no_room")? == 0;
        let port = self.0.member("tty_struct", tty, "port")?;
        let beyond = self.beyond(port)?;
        if has_room && !beyond.is_empty() {
            return Ok(None);
        }
        let (head, tail) = (number("read_head")?, number("read_tail")?);
        let size = u64::from(self.0.types.array("n_tty_data", "read_buf")?.unwrap_or_default());
        let count = head.wrapping_sub(tail);
        if !size.is_power_of_two() || count > size {
            return Err(io::Error::other("this kernel keeps a terminal's input in another way"));
        }
        let place = |member| Ok::<_, io::Error>(data + self.0.types.offset("n_tty_data", member)?);
        let ring = |index: u64| tail.wrapping_add(index) & (size - 1);
        let (first, rest) = (count.min(size - ring(0)), count - count.min(size - ring(0)));
        let buffer = place("read_buf")?;
        let mut bytes = self.0.bytes(buffer + ring(0), first as usize)?;
        bytes.extend(self.0.bytes(buffer, rest as usize)?);
        let mut ends = Vec::new();
        if self.bit("n_tty_data", data, "icanon")? && count > 0 {
            let flags = self.0.bytes(place("read_flags")?, (size / 8) as usize)?;
            let is_end = |index: &u64| flags[ring(*index) as usize / 8] >> (ring(*index) % 8) & 1 != 0;
            ends.extend((0..count).filter(is_end).map(|index| index as u32));
        }
        if !beyond.is_empty() && beyond != self.beyond(port)? {
            return Ok(None);
        }
        Ok(Some(WaitingInput {
            bytes,
            ends,
            pushed: self.bit("n_tty_data", data, "push")?,
            quoting: self.bit("n_tty_data", data, "lnext")?,
            erasing: self.bit("n_tty_data", data, "erasing")?,
            echoing: number("echo_head")? != number("echo_tail")?,
            beyond,
        }))
    }

    /// What is in a port's buffers.
    fn beyond(&self, port: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if port == 0 {
            return Ok(bytes);
        }
        let head = port + self.0.types.offset("tty_port", "buf")?;
        let mut buffer = self.0.member("tty_bufhead", head, "head")?;
        for _ in 0..MOST_BUFFERS {
            let number = |member| self.0.number("tty_buffer", buffer, member);
            let (read, used) = (number("read")? as usize, number("used")? as usize);
            if used < read || bytes.len() + used - read > MOST_BEYOND {
                break;
            }
            let data = buffer + self.0.types.offset("tty_buffer", "data")?;
            bytes.extend(self.0.bytes(data + read as u64, used - read)?);
            buffer = self.0.member("tty_buffer", buffer, "next")?;
            if buffer == 0 {
                return Ok(bytes);
            }
        }
        Err(io::Error::other(
            "this kernel keeps a terminal's buffers in another way",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{StoppedOutput, Terminals};
    use crate::terminal;
    use nix::{
        pty::openpty,
        sys::termios::{FlowArg, SetArg, cfmakeraw, tcflow, tcgetattr, tcsetattr},
        unistd::write,
    };
    use std::{os::fd::AsFd, time::Duration};

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn lines_and_what_is_being_typed_are_seen_and_stay() {
        let terminals = Terminals::open().expect("as root");
        let pair = openpty(None, None).expect("a terminal");
        let (master, slave) = (pair.master.as_fd(), pair.slave.as_fd());
        let (one, two) = (
            terminals.end(master).expect("an end"),
            terminals.end(slave).expect("an end"),
        );
        assert_eq!(terminals.other(one).expect("its other"), Some(two));
        write(master, b"one\n\x04un\x16\nfinished\x16").expect("type");
        for _ in 0..2 {
            let input = terminals.look(two, PATIENCE).expect("look").input.expect("N_TTY");
            assert_eq!(input.bytes, b"one\n\0un\nfinished");
            assert_eq!((input.ends, input.quoting, input.pushed), (vec![3, 4], true, false));
        }
        let look = terminals.look(one, PATIENCE).expect("look");
        let echo = b"one\r\nun^\x08\n";
        assert!(look.input.expect("N_TTY").bytes.starts_with(&echo[..7]));
        assert_eq!((look.discipline, look.other_closed), (0, false));
        let count = |end| terminals.look(end, PATIENCE).expect("look").open_files;
        let again = terminal::open_slave(master, libc::O_RDONLY).expect("open it again");
        assert_eq!(count(two), 2);
        drop(again);
        assert_eq!(count(two), 1);
        drop(pair.slave);
        assert_eq!(count(two), 0);
        assert!(terminals.look(one, PATIENCE).expect("look").other_closed);
    }

    #[test]
    fn what_has_no_room_is_seen() {
        let terminals = Terminals::open().expect("as root");
        let pair = openpty(None, None).expect("a terminal");
        let mut raw = tcgetattr(&pair.slave).expect("settings");
        cfmakeraw(&mut raw);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &raw).expect("raw");
        let text: Vec<u8> = (0..6000_u32).map(|index| (index % 251) as u8).collect();
        let slave = terminals.end(pair.slave.as_fd()).expect("an end");
        for (writes, end) in [
            (&pair.master, slave),
            (&pair.slave, terminals.other(slave).expect("other").expect("there")),
        ] {
            assert_eq!(write(writes, &text).expect("write"), text.len());
            let input = terminals.look(end, PATIENCE).expect("look").input.expect("N_TTY");
            assert_eq!((input.bytes.len(), input.beyond.len()), (4095, 6000 - 4095));
            assert_eq!([input.bytes, input.beyond].concat(), text);
        }
        tcflow(&pair.slave, FlowArg::TCOOFF).expect("stop");
        let look = terminals.look(slave, PATIENCE).expect("look");
        assert_eq!(look.stopped, StoppedOutput::ByCall);
    }
}
