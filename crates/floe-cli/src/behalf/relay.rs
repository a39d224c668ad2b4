//! What an ordinary user's floe prints, on its way to where root's prints.

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags},
};
use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
};

/// What the user's floe prints, printed line by line.
pub struct Relay {
    from: File,
    line: Vec<u8>,
    print: fn(&str),
    pub is_open: bool,
}

/// Longer lines are printed in parts.
const LINE_BYTES: usize = 1 << 20;

impl Relay {
    pub fn new(from: OwnedFd, print: fn(&str)) -> Result<Self, Errno> {
        fcntl(&from, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self {
            from: from.into(),
            line: Vec::new(),
            print,
            is_open: true,
        })
    }

    pub fn polled(&self) -> PollFd<'_> {
        PollFd::new(self.from.as_fd(), PollFlags::POLLIN)
    }

    /// Prints what is there.
    pub fn pass_on(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        // No more than a pipe holds, so that one who prints without end does not keep root from what else there is to do.
        for _ in 0..16 {
            if !self.is_open {
                break;
            }
            let count = match self.from.read(&mut bytes) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.is_open = count > 0;
            for byte in &bytes[..count] {
                if *byte == b'\n' || self.line.len() == LINE_BYTES {
                    self.print_line();
                }
                if *byte != b'\n' {
                    self.line.push(*byte);
                }
            }
        }
        Ok(())
    }

    fn print_line(&mut self) {
        (self.print)(&String::from_utf8_lossy(&std::mem::take(&mut self.line)));
    }

    /// Prints what has no end of a line.
    pub fn end(&mut self) {
        if !self.line.is_empty() {
            self.print_line();
        }
    }
}
