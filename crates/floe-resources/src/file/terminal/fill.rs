//! Puts a fresh pseudo-terminal into the state that a record tells.
//!
//! What waits to be read is put in by TIOCSTI, byte by byte, while settings are such that a byte is kept as it is: lines
//! end where they ended, and nothing is echoed. The order is forced by what settings and packet mode do to each other:
//!
//! ```text
//! settings -> output -> stop -> packet mode and what it has to tell -> input -> settings -> input beyond
//! ```

use super::MasterRecord;
use floe_image::record::{OutputStop, TerminalInput, TerminalRecord};
use floe_sys::terminal::{Flags, TerminalSettings, command, control, type_in};
use nix::{
    errno::Errno,
    unistd::{fchown, write},
};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// include/uapi/asm-generic/ioctls.h and termbits-common.h.
const TCXONC: libc::c_ulong = 0x540A;
const TCFLSH: libc::c_ulong = 0x540B;
const TIOCPKT: libc::c_ulong = 0x5420;
const TCOOFF: i32 = 0;
const TCOON: i32 = 1;
const TCIFLUSH: i32 = 0;
const TCOFLUSH: i32 = 1;

/// What packet mode tells, include/uapi/asm-generic/ioctls.h.
mod packet {
    pub const FLUSHREAD: u8 = 1;
    pub const FLUSHWRITE: u8 = 2;
    pub const STOP: u8 = 4;
    pub const START: u8 = 8;
    pub const NOSTOP: u8 = 16;
    pub const DOSTOP: u8 = 32;
    pub const IOCTL: u8 = 64;
}

/// Keys for putting bytes in: one that quotes the next, and one that ends a line without a byte.
const QUOTE: u8 = 0x16;
const END: u8 = 0x04;
/// What STOP and START are in packet mode.
const XOFF: u8 = 0x13;
const XON: u8 = 0x11;

/// Fills the terminal behind `slave`. The sandbox's own has its master elsewhere: there, what its input has no room for is
/// the monitor's to write.
pub fn fill(
    slave: BorrowedFd<'_>,
    record: &TerminalRecord,
    master: Option<(BorrowedFd<'_>, &MasterRecord)>,
) -> io::Result<()> {
    Filling::new(slave, record)?.fill(master)
}

/// Sets what may be set only when nothing else is to come.
pub fn close(slave: BorrowedFd<'_>, record: &TerminalRecord) -> io::Result<()> {
    if record.locked.iter().any(|byte| *byte != 0) {
        control(slave.as_raw_fd(), libc::TIOCSLCKTRMIOS, &mut record.locked.clone())?;
    }
    if record.exclusive {
        command(slave, libc::TIOCEXCL, 0)?;
    }
    Ok(())
}

struct Filling<'a> {
    slave: BorrowedFd<'a>,
    record: &'a TerminalRecord,
    /// Those of the record.
    settings: TerminalSettings,
}

impl<'a> Filling<'a> {
    fn new(slave: BorrowedFd<'a>, record: &'a TerminalRecord) -> io::Result<Self> {
        let settings = TerminalSettings::from_bytes(&record.settings).ok_or(Errno::EINVAL)?;
        Ok(Self {
            slave,
            record,
            settings,
        })
    }

    fn set(&self, settings: &TerminalSettings) -> io::Result<()> {
        settings.apply(self.slave.as_raw_fd())
    }

    fn fill(&self, master: Option<(BorrowedFd<'_>, &MasterRecord)>) -> io::Result<()> {
        let status = master.and_then(|(_, record)| record.packet).unwrap_or(0);
        self.set(&self.settings)?;
        let mut window: Vec<u8> = self.record.window.iter().flat_map(|word| word.to_ne_bytes()).collect();
        control(self.slave.as_raw_fd(), libc::TIOCSWINSZ, &mut window)?;
        let [user, group] = self.record.owner;
        fchown(self.slave, Some(user.into()), Some(group.into()))?;
        nix::sys::stat::fchmod(self.slave, nix::sys::stat::Mode::from_bits_truncate(self.record.mode))?;
        if let Some((file, record)) = master {
            self.output(file, &record.input)?;
        }
        if status & packet::STOP == 0 {
            self.stop()?;
        }
        if let Some((file, MasterRecord { packet: Some(_), .. })) = master {
            control(file.as_raw_fd(), TIOCPKT, &mut 1_i32.to_ne_bytes())?;
            self.tell(status)?;
        }
        self.input()?;
        if status & packet::IOCTL != 0 {
            self.set(&self.settings)?;
        }
        if let Some((file, _)) = master {
            write_all(file, &self.record.input.beyond)?;
        }
        Ok(())
    }

    /// What waits for the master.
    fn output(&self, master: BorrowedFd<'_>, waiting: &TerminalInput) -> io::Result<()> {
        type_in(master, &waiting.bytes)?;
        if waiting.beyond.is_empty() {
            return Ok(());
        }
        let mut plain = self.settings;
        plain.set_flags(Flags::Output, self.settings.flags(Flags::Output) & !libc::OPOST);
        self.set(&plain)?;
        write_all(self.slave, &waiting.beyond)?;
        self.set(&self.settings)
    }

    fn stop(&self) -> io::Result<()> {
        match self.record.stopped {
            OutputStop::No => Ok(()),
            OutputStop::Call => Ok(command(self.slave, TCXONC, TCOOFF).map(drop)?),
            OutputStop::Key => {
                let mut settings = self.settings;
                let key = settings.key(libc::VSTOP);
                if settings.has(Flags::Input, libc::IXON) && key != 0 {
                    return Ok(type_in(self.slave, &[key])?);
                }
                // It was another key when it was pressed.
                settings.set_flags(Flags::Input, settings.flags(Flags::Input) | libc::IXON);
                settings.set_key(libc::VSTOP, XOFF);
                self.set(&settings)?;
                type_in(self.slave, &[XOFF])?;
                Ok(self.set(&self.settings)?)
            }
        }
    }

    /// Does what packet mode tells of, but for IOCTL.
    fn tell(&self, status: u8) -> io::Result<()> {
        for (bit, queue) in [(packet::FLUSHREAD, TCIFLUSH), (packet::FLUSHWRITE, TCOFLUSH)] {
            if status & bit != 0 {
                command(self.slave, TCFLSH, queue)?;
            }
        }
        if status & (packet::NOSTOP | packet::DOSTOP) != 0 {
            let mut other = self.settings;
            let input = other.flags(Flags::Input);
            other.set_flags(Flags::Input, input & !libc::IXON);
            if status & packet::NOSTOP != 0 {
                other.set_flags(Flags::Input, input | libc::IXON);
                other.set_key(libc::VSTOP, XOFF);
                other.set_key(libc::VSTART, XON);
            }
            self.set(&other)?;
            self.set(&self.settings)?;
        }
        if status & packet::START != 0 {
            command(self.slave, TCXONC, TCOOFF)?;
            command(self.slave, TCXONC, TCOON)?;
        }
        if status & packet::STOP != 0 {
            self.stop()?;
        }
        Ok(())
    }

    /// What was typed.
    fn input(&self) -> io::Result<()> {
        let TerminalInput {
            bytes,
            ends,
            pushed,
            quoting,
            ..
        } = &self.record.input;
        if bytes.is_empty() && !quoting {
            return Ok(());
        }
        let extended = self.settings.has(Flags::Local, libc::EXTPROC);
        if extended && !self.settings.has(Flags::Input, libc::ISTRIP) {
            // Bytes are kept as they are.
            return Ok(type_in(self.slave, bytes)?);
        }
        let mut quiet = self.quiet();
        if extended || !self.settings.is_canonical() {
            self.plainly(quiet, bytes)?;
        } else {
            let first = match ends.first() {
                Some(end) if *pushed => *end as usize + 1,
                _ => 0,
            };
            let (old, lines) = bytes.split_at(first);
            if *pushed {
                let mut raw = quiet;
                raw.set_flags(Flags::Local, quiet.flags(Flags::Local) & !libc::ICANON);
                self.plainly(raw, old)?;
            }
            self.set(&quiet)?;
            let ends = ends.iter().map(|end| *end as usize).filter(|end| *end >= first);
            self.lines(&mut quiet, lines, &ends.map(|end| end - first).collect::<Vec<_>>())?;
            if *quoting {
                type_in(self.slave, &[QUOTE])?;
            }
        }
        self.set(&self.settings)
    }

    /// Settings under which few bytes do something, and none is echoed. What packet mode tells of stays as it is.
    fn quiet(&self) -> TerminalSettings {
        let mut quiet = self.settings;
        quiet.set_flags(Flags::Input, self.settings.flags(Flags::Input) & libc::IXON);
        let kept = self.settings.flags(Flags::Local) & (libc::ICANON | libc::EXTPROC);
        quiet.set_flags(Flags::Local, kept | libc::IEXTEN);
        quiet.keep_keys(&[libc::VSTART, libc::VSTOP, libc::VMIN, libc::VTIME]);
        quiet.set_key(libc::VEOF, END);
        quiet.set_key(libc::VLNEXT, QUOTE);
        quiet
    }

    /// Bytes where no lines are edited.
    fn plainly(&self, mut quiet: TerminalSettings, bytes: &[u8]) -> io::Result<()> {
        let flow = [quiet.key(libc::VSTART), quiet.key(libc::VSTOP)];
        if bytes.iter().any(|byte| flow.contains(byte)) {
            quiet.set_flags(Flags::Input, 0);
        }
        self.set(&quiet)?;
        Ok(type_in(self.slave, bytes)?)
    }

    /// Lines that end at `ends`, and what follows the last.
    fn lines(&self, quiet: &mut TerminalSettings, bytes: &[u8], ends: &[usize]) -> io::Result<()> {
        let mut ends = ends.iter().copied().peekable();
        for (at, byte) in bytes.iter().enumerate() {
            let is_end = ends.next_if_eq(&at).is_some();
            match byte {
                b'\n' if is_end => type_in(self.slave, b"\n")?,
                0 if is_end => type_in(self.slave, &[END])?,
                byte if is_end => {
                    // What ends a line was chosen by VEOL.
                    quiet.set_key(libc::VEOL, *byte);
                    self.set(quiet)?;
                    type_in(self.slave, &[*byte])?;
                    quiet.set_key(libc::VEOL, 0);
                    self.set(quiet)?;
                }
                byte if [b'\n', END, QUOTE].contains(byte) || self.is_flow(quiet, *byte) => {
                    type_in(self.slave, &[QUOTE, *byte])?;
                }
                byte => type_in(self.slave, &[*byte])?,
            }
        }
        Ok(())
    }

    fn is_flow(&self, quiet: &TerminalSettings, byte: u8) -> bool {
        byte == quiet.key(libc::VSTART) || byte == quiet.key(libc::VSTOP)
    }
}

fn write_all(end: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let done = write(end, bytes)?;
        bytes = &bytes[done..];
    }
    Ok(())
}
