//! Bytes to and from the other side, over whatever carries them: a socket, or two pipes. Waiting ends when nothing comes for
//! too long, and when floe is told to stop.

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, poll},
};
use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// How often is looked whether floe was told to stop, in milliseconds.
const GLANCE: u8 = 50;

/// Both directions of a connection.
#[derive(Debug)]
pub struct Wire {
    input: OwnedFd,
    output: OwnedFd,
    patience: Duration,
    interrupted: &'static AtomicBool,
    /// When all that is done with it must be done.
    deadline: Option<Instant>,
    /// When the frame that is awaited must be here.
    frame: Option<Instant>,
}

impl Wire {
    /// Takes a connection over. Reading or writing fails with [`io::ErrorKind::TimedOut`] when the other side does nothing
    /// for `patience`, and with [`io::ErrorKind::Interrupted`]'s kin [`io::ErrorKind::Other`] when told to stop.
    pub fn new(
        (input, output): (OwnedFd, OwnedFd),
        patience: Duration,
        interrupted: &'static AtomicBool,
    ) -> io::Result<Self> {
        for end in [&input, &output] {
            let flags = OFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFL)?);
            fcntl(end, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(Self {
            input,
            output,
            patience,
            interrupted,
            deadline: None,
            frame: None,
        })
    }

    /// What poll(2) is to look at for input.
    pub fn input(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// How long it waits.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Has it wait for so long from now on, and look at another flag.
    pub fn set_manner(&mut self, patience: Duration, interrupted: &'static AtomicBool) {
        self.patience = patience;
        self.interrupted = interrupted;
    }

    /// Has all that waits fail from then on, whatever the other side does.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Whether floe was told to stop.
    pub fn is_told_to_stop(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Whether that is past.
    pub fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// A frame is awaited, which must be here whole before the patience ends; or is no more.
    pub fn await_frame(&mut self, awaits: bool) {
        self.frame = if awaits {
            Instant::now().checked_add(self.patience)
        } else {
            None
        };
    }

    /// Tries something until it does not ask for waiting any more.
    fn persist<T>(
        &self,
        (end, flags): (BorrowedFd<'_>, PollFlags),
        mut attempt: impl FnMut() -> Result<T, Errno>,
    ) -> io::Result<T> {
        let begin = Instant::now();
        loop {
            match attempt() {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                result => return Ok(result?),
            }
            if self.is_told_to_stop() {
                return Err(io::Error::other("told to stop"));
            }
            if self.is_late() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the other side took too long for it",
                ));
            }
            let frame_is_late = self.frame.is_some_and(|end| Instant::now() >= end);
            if begin.elapsed() >= self.patience || frame_is_late {
                let text = format!("the other side was silent for {} s", self.patience.as_secs_f64());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            match poll(&mut [PollFd::new(end, flags)], GLANCE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.input.as_fd();
        self.persist((end, PollFlags::POLLIN), || nix::unistd::read(end, buffer))
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = self.output.as_fd();
        self.persist((end, PollFlags::POLLOUT), || nix::unistd::write(end, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
