//! The client's side of a sandbox's monitor: attached terminals and foreground runs.

use crate::{
    message::{self, PAYLOAD, kind},
    monitor_socket,
    terminal::{RawMode, WindowSize},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
    unistd::read,
};
use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
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
    /// With this exit status (128 + N for signal N).
    Exited(i32),
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
        self.ask(kind::ANNOUNCE)
    }

    /// Asks for all output from now on; returns when the monitor has taken note.
    ///
    /// # Errors
    /// [`AttachError::Talk`].
    pub fn subscribe(&mut self) -> Result<(), AttachError> {
        self.ask(kind::SUBSCRIBE)
    }

    pub(crate) fn send(&self, kind: u8, payload: &[u8]) -> Result<(), AttachError> {
        Ok(message::put(&self.socket, kind, payload)?)
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

    fn ask(&mut self, kind: u8) -> Result<(), AttachError> {
        message::put(&self.socket, kind, &[])?;
        match message::get(&self.socket)? {
            Some((kind::NOTED, _)) => Ok(()),
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

    /// Connects the caller's streams with the workload's until it ends or the user detaches (ctrl-p ctrl-q on a
    /// terminal). `resized` is set by a handler of SIGWINCH; `signal` holds a signal number that a handler took and that
    /// `forward` is to be told of, or 0.
    ///
    /// # Errors
    /// [`AttachError`]. The caller's terminal is as before in any case.
    pub fn attach(
        mut self,
        with_input: bool,
        is_terminal: bool,
        resized: &AtomicBool,
        signal: &AtomicI32,
        mut forward: impl FnMut(i32),
    ) -> Result<Attached, AttachError> {
        let stdin = io::stdin();
        let raw = if is_terminal {
            RawMode::enter(stdin.as_fd())?
        } else {
            None
        };
        let result = self.relay(
            with_input.then(|| stdin.as_fd()),
            raw.is_some(),
            resized,
            signal,
            &mut forward,
        );
        drop(raw);
        result
    }

    fn relay(
        &mut self,
        mut input: Option<BorrowedFd<'_>>,
        detachable: bool,
        resized: &AtomicBool,
        signal: &AtomicI32,
        forward: &mut impl FnMut(i32),
    ) -> Result<Attached, AttachError> {
        let mut held = Vec::new();
        self.send_size()?;
        loop {
            if resized.swap(false, Ordering::Relaxed) {
                self.send_size()?;
            }
            match signal.swap(0, Ordering::Relaxed) {
                0 => {}
                number => forward(number),
            }
            let mut asked = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            asked.extend(input.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            match poll(&mut asked, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let ready = |fd: Option<&PollFd<'_>>| fd.and_then(PollFd::revents).is_some_and(|e| !e.is_empty());
            let (from_monitor, from_user) = (ready(asked.first()), ready(asked.get(1)));
            if from_monitor && let Some(ended) = self.hear()? {
                return Ok(ended);
            }
            if from_user && let Some(fd) = input {
                match self.send_input(fd, detachable, &mut held)? {
                    Typed::Detach => return Ok(Attached::Detached),
                    Typed::End => input = None,
                    Typed::More => {}
                }
            }
        }
    }

    fn send_size(&self) -> Result<(), AttachError> {
        if let Ok(WindowSize {
            words: [rows, cols, ..],
        }) = WindowSize::read(io::stdin().as_raw_fd())
        {
            let payload = [rows.to_le_bytes(), cols.to_le_bytes()].concat();
            message::put(&self.socket, kind::WINDOW, &payload)?;
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<Option<Attached>, AttachError> {
        let Some((kind, payload)) = message::get(&self.socket)? else {
            return Ok(Some(Attached::Lost));
        };
        match kind {
            kind::OUTPUT => self.pass_on(kind, &mut io::stdout().lock(), &payload)?,
            kind::ERROR => self.pass_on(kind, &mut io::stderr().lock(), &payload)?,
            _ => {}
        }
        Ok(parse_ending(kind, &payload).map(Attached::Ended))
    }

    /// Writes all; where nobody reads any more the monitor is told.
    fn pass_on(&self, kind: u8, out: &mut impl Write, bytes: &[u8]) -> Result<(), AttachError> {
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Ok(message::put(&self.socket, kind::UNREAD, &[kind])?)
            }
            result => Ok(result?),
        }
    }

    fn send_input(&self, fd: BorrowedFd<'_>, detachable: bool, held: &mut Vec<u8>) -> Result<Typed, AttachError> {
        let mut buffer = vec![0; PAYLOAD - DETACH_KEYS.len()];
        match read(fd, &mut buffer) {
            Ok(0) => {
                message::put(&self.socket, kind::INPUT_END, &[])?;
                Ok(Typed::End)
            }
            Ok(got) => {
                let mut bytes = std::mem::take(held);
                bytes.extend_from_slice(&buffer[..got]);
                if detachable && bytes.windows(2).any(|pair| pair == DETACH_KEYS) {
                    return Ok(Typed::Detach);
                }
                // The first of the two keys is held back until it is known what follows.
                if detachable && bytes.last() == Some(&DETACH_KEYS[0]) {
                    held.push(DETACH_KEYS[0]);
                    bytes.pop();
                }
                if !bytes.is_empty() {
                    message::put(&self.socket, kind::INPUT, &bytes)?;
                }
                Ok(Typed::More)
            }
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(Typed::More),
            // A background process may not read its terminal.
            Err(_) => Ok(Typed::End),
        }
    }
}

enum Typed {
    More,
    End,
    Detach,
}

fn parse_ending(kind: u8, payload: &[u8]) -> Option<Ending> {
    match kind {
        kind::EXITED => Some(Ending::Exited(payload.try_into().map_or(125, i32::from_le_bytes))),
        kind::CHECKPOINTED => Some(Ending::Checkpointed),
        _ => None,
    }
}
