//! The client's side of a sandbox's monitor: attached terminals and foreground runs.

use crate::{
    message::{self, PAYLOAD, kind},
    monitor_socket,
    terminal::{RawMode, WindowSize},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
    },
    unistd::read,
};
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

/// A monitor that can't be talked to.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Nobody answers.
    #[error("reach the monitor of the sandbox in {folder}")]
    Connect {
        /// Its folder.
        folder: PathBuf,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// The connection broke.
    #[error("talk to the sandbox's monitor")]
    Talk(#[from] Errno),
    /// The caller's own streams.
    #[error("read or write floe's own standard streams")]
    Streams(#[from] io::Error),
}

/// How a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With this exit status.
    Exited(i32),
    /// By a signal: 128 and its number.
    Killed(i32),
    /// It went into an image.
    Checkpointed,
}

/// How an attached session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attached {
    /// The sandbox did.
    Ended(Ending),
    /// The user pressed ctrl-p ctrl-q.
    Detached,
    /// The caller's output is not read any more.
    Unread,
    /// The monitor hung up.
    Lost,
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
}

const DETACH_KEYS: [u8; 2] = [0x10, 0x11];

impl Client {
    /// Connects to the monitor of the sandbox in `folder`.
    ///
    /// # Errors
    /// [`AttachError::Connect`].
    pub fn connect(folder: &Path) -> Result<Self, AttachError> {
        let wrap = |source| AttachError::Connect {
            folder: folder.to_owned(),
            source,
        };
        let directory = File::open(folder).map_err(|e| wrap(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
        let path = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), monitor_socket());
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).map_err(wrap)?;
        let address = UnixAddr::new(path.as_str()).map_err(wrap)?;
        connect(socket.as_raw_fd(), &address).map_err(wrap)?;
        Ok(Self { socket })
    }

    pub(crate) fn announce(&mut self) -> Result<(), AttachError> {
        self.ask(kind::ANNOUNCE).map(drop)
    }

    /// Waits until all memory of the sandbox is there (it may come while it runs).
    ///
    /// # Errors
    /// [`AttachError::Talk`], where it ends before, too.
    pub(crate) fn await_memory(&mut self) -> Result<(), AttachError> {
        self.ask(kind::LOADED).map(drop)
    }

    /// Asks for all output from now on; returns, when the monitor has taken note, how many bytes of the log came before.
    ///
    /// # Errors
    /// [`AttachError::Talk`].
    pub fn subscribe(&mut self) -> Result<u64, AttachError> {
        let payload = self.ask(kind::SUBSCRIBE)?;
        Ok(payload.try_into().map_or(0, u64::from_le_bytes))
    }

    pub(crate) fn send(&self, kind: u8, payload: &[u8]) -> Result<(), AttachError> {
        Ok(message::put(&self.socket, kind, payload)?)
    }

    /// Whether a message waits, or the end; waited for so many milliseconds.
    pub(crate) fn has_answer(&self, patience: u8) -> Result<bool, AttachError> {
        match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], patience) {
            Ok(count) => Ok(count > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn send_with_file(&self, kind: u8, payload: &[u8], file: BorrowedFd<'_>) -> Result<(), AttachError> {
        Ok(message::put_file(&self.socket, kind, payload, file)?)
    }

    pub(crate) fn receive_with_file(&self) -> Result<Option<message::WithFile>, AttachError> {
        Ok(message::get_with_file(&self.socket)?)
    }

    pub(crate) fn receive(&self) -> Result<Option<(u8, Vec<u8>)>, AttachError> {
        Ok(message::get(&self.socket)?)
    }

    /// Gives the workload input, and its end.
    ///
    /// # Errors
    /// [`AttachError::Talk`].
    pub fn feed(&self, bytes: &[u8], ends: bool) -> Result<(), AttachError> {
        for piece in bytes.chunks(PAYLOAD) {
            self.send(kind::INPUT, piece)?;
        }
        if ends {
            self.send(kind::INPUT_END, &[])?;
        }
        Ok(())
    }

    fn ask(&mut self, kind: u8) -> Result<Vec<u8>, AttachError> {
        message::put(&self.socket, kind, &[])?;
        match message::get(&self.socket)? {
            Some((kind::NOTED, payload)) => Ok(payload),
            Some(_) | None => Err(AttachError::Talk(Errno::ECONNRESET)),
        }
    }

    /// Waits for the end; `None` where the monitor hung up without a word.
    ///
    /// # Errors
    /// [`AttachError::Talk`].
    pub fn wait_for_end(&mut self) -> Result<Option<Ending>, AttachError> {
        let mut ending = None;
        while let Some((kind, payload)) = message::get(&self.socket)? {
            ending = parse_ending(kind, &payload).or(ending);
        }
        Ok(ending)
    }

    /// Connects the caller's streams with the workload's until it ends or the user lets go of it. `forward` is told of
    /// signals.
    ///
    /// # Errors
    /// [`AttachError`]. The caller's terminal is as before in any case.
    pub fn attach(self, wishes: &Wishes<'_>, forward: impl FnMut(i32)) -> Result<Attached, AttachError> {
        let stdin = io::stdin();
        let raw = if wishes.terminal {
            RawMode::enter(stdin.as_fd())?
        } else {
            None
        };
        let mut relay = Relay {
            socket: self.socket,
            wishes,
            detachable: raw.is_some(),
            input: wishes.input.then(|| stdin.as_fd()),
            held: Vec::new(),
            leaves: false,
            outgoing: VecDeque::new(),
            forward,
        };
        let result = relay.run();
        drop(raw);
        result
    }
}

/// What an attached client does besides printing.
#[derive(Debug, Clone, Copy)]
pub struct Wishes<'a> {
    /// Standard error comes out on standard output too, in the order in which all was written.
    pub merged: bool,
    /// Standard input goes to the workload.
    pub input: bool,
    /// The workload has a terminal, so the caller's, if it is one, becomes a window on it; ctrl-p ctrl-q lets go.
    pub terminal: bool,
    /// What the caller's reader does not read any more nobody will: the workload is told as if it wrote there itself.
    /// Otherwise the client lets go.
    pub owner: bool,
    /// Signals that are taken.
    pub signals: Option<&'a Signals>,
}

/// Signals that are not acted upon but read, none lost however they coincide with other things.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Takes SIGINT, SIGTERM, SIGHUP, SIGQUIT and SIGWINCH from now on, for good.
    ///
    /// # Errors
    /// EMFILE, ENOMEM.
    pub fn take() -> Result<Self, Errno> {
        let set: SigSet = [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGWINCH,
        ]
        .into_iter()
        .collect();
        set.thread_block()?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Self)
    }

    fn next(&self) -> Result<Option<i32>, Errno> {
        Ok(self.0.read_signal()?.map(|info| info.ssi_signo as i32))
    }
}

struct Relay<'a, F> {
    socket: OwnedFd,
    wishes: &'a Wishes<'a>,
    detachable: bool,
    input: Option<BorrowedFd<'a>>,
    /// The first of the detaching keys, until it is known what follows.
    held: Vec<u8>,
    /// Whether the detaching keys were typed: what was typed before them goes out still.
    leaves: bool,
    /// Messages that the monitor has no room for yet. It is never waited for: it may itself wait until its output is read.
    outgoing: VecDeque<(u8, Vec<u8>)>,
    forward: F,
}

impl<F: FnMut(i32)> Relay<'_, F> {
    fn run(&mut self) -> Result<Attached, AttachError> {
        self.send_size();
        loop {
            self.flush()?;
            if self.leaves && self.outgoing.is_empty() {
                return Ok(Attached::Detached);
            }
            let ready = self.wait()?;
            if ready.signal
                && let Some(end) = self.signals()?
            {
                return Ok(end);
            }
            if ready.monitor
                && let Some(end) = self.hear()?
            {
                return Ok(end);
            }
            if ready.input
                && let Some(fd) = self.input
            {
                match self.read_input(fd) {
                    Typed::Detach => (self.leaves, self.input) = (true, None),
                    Typed::End => self.input = None,
                    Typed::More => {}
                }
            }
        }
    }

    fn wait(&self) -> Result<Ready, Errno> {
        let mut flags = PollFlags::POLLIN;
        if !self.outgoing.is_empty() {
            flags |= PollFlags::POLLOUT;
        }
        let mut asked = vec![PollFd::new(self.socket.as_fd(), flags)];
        let signals = self.wishes.signals.map(|signals| signals.0.as_fd());
        let input = self.input.filter(|_| self.outgoing.is_empty());
        asked.extend(signals.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        asked.extend(input.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        while let Err(error) = poll(&mut asked, PollTimeout::NONE) {
            if error != Errno::EINTR {
                return Err(error);
            }
        }
        let mut events = asked.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        let mut next = || events.next().unwrap_or(PollFlags::empty());
        Ok(Ready {
            monitor: next().intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR),
            signal: signals.is_some() && !next().is_empty(),
            input: input.is_some() && !next().is_empty(),
        })
    }

    fn signals(&mut self) -> Result<Option<Attached>, AttachError> {
        while let Some(signals) = self.wishes.signals {
            match signals.next()? {
                Some(libc::SIGWINCH) => self.send_size(),
                // The terminal is gone; the workload has one of its own.
                Some(libc::SIGHUP) if self.detachable => return Ok(Some(Attached::Detached)),
                Some(number) => (self.forward)(number),
                None => break,
            }
        }
        Ok(None)
    }

    fn send_size(&mut self) {
        if let Ok(WindowSize {
            words: [rows, cols, ..],
        }) = WindowSize::read(io::stdin().as_raw_fd())
        {
            let payload = [rows.to_le_bytes(), cols.to_le_bytes()].concat();
            self.outgoing.push_back((kind::WINDOW, payload));
        }
    }

    fn flush(&mut self) -> Result<(), AttachError> {
        while let Some((kind, payload)) = self.outgoing.front() {
            match message::put_now(&self.socket, *kind, payload) {
                Ok(()) => drop(self.outgoing.pop_front()),
                Err(Errno::EAGAIN) => break,
                // It has ended; what it said last can still be heard.
                Err(Errno::EPIPE | Errno::ECONNRESET) => self.outgoing.clear(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<Option<Attached>, AttachError> {
        let Some((kind, payload)) = message::get(&self.socket)? else {
            return Ok(Some(Attached::Lost));
        };
        let read = match kind {
            kind::OUTPUT => write_all(&mut io::stdout().lock(), &payload)?,
            kind::ERROR if self.wishes.merged => write_all(&mut io::stdout().lock(), &payload)?,
            kind::ERROR => write_all(&mut io::stderr().lock(), &payload)?,
            _ => true,
        };
        if !read && !self.wishes.owner {
            return Ok(Some(Attached::Unread));
        }
        if !read {
            self.outgoing.push_back((kind::UNREAD, vec![kind]));
        }
        Ok(parse_ending(kind, &payload).map(Attached::Ended))
    }

    fn read_input(&mut self, fd: BorrowedFd<'_>) -> Typed {
        let mut buffer = vec![0; PAYLOAD - DETACH_KEYS.len()];
        match read(fd, &mut buffer) {
            Ok(0) => {
                self.outgoing.push_back((kind::INPUT_END, Vec::new()));
                Typed::End
            }
            Ok(got) => {
                let mut bytes = std::mem::take(&mut self.held);
                bytes.extend_from_slice(&buffer[..got]);
                let keys = bytes.windows(2).position(|pair| pair == DETACH_KEYS);
                if let Some(at) = keys.filter(|_| self.detachable) {
                    bytes.truncate(at);
                    if !bytes.is_empty() {
                        self.outgoing.push_back((kind::INPUT, bytes));
                    }
                    return Typed::Detach;
                }
                if self.detachable && bytes.last() == Some(&DETACH_KEYS[0]) {
                    self.held.push(DETACH_KEYS[0]);
                    bytes.pop();
                }
                if !bytes.is_empty() {
                    self.outgoing.push_back((kind::INPUT, bytes));
                }
                Typed::More
            }
            Err(Errno::EINTR | Errno::EAGAIN) => Typed::More,
            // A background process may not read its terminal.
            Err(_) => Typed::End,
        }
    }
}

struct Ready {
    monitor: bool,
    signal: bool,
    input: bool,
}

enum Typed {
    More,
    End,
    Detach,
}

fn parse_ending(kind: u8, payload: &[u8]) -> Option<Ending> {
    match kind {
        kind::EXITED => {
            let (status, by_signal) = payload.split_first_chunk().unwrap_or((&[125, 0, 0, 0], &[]));
            let status = i32::from_le_bytes(*status);
            Some(if by_signal == [1] {
                Ending::Killed(status)
            } else {
                Ending::Exited(status)
            })
        }
        kind::CHECKPOINTED => Some(Ending::Checkpointed),
        _ => None,
    }
}

/// Writes all; whether somebody reads it.
fn write_all(out: &mut impl Write, bytes: &[u8]) -> io::Result<bool> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true),
    }
}
