//! The monitor's ends of the workload's standard streams, and the log.

use super::{clients::Clients, typed::TypedLine};
use crate::{
    message::{PAYLOAD, kind},
    spec::Console,
    terminal::WindowSize,
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::fstat,
    unistd::{read, write},
};
use std::{
    collections::VecDeque,
    fs::File,
    io::Write,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

/// Input that waits for the workload to read it is bounded; more makes the client wait.
pub const INPUT_LIMIT: usize = 256 << 10;

/// The monitor's ends of three pipes; `None` for a stream that is none.
pub struct PipeEnds {
    input: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
    inodes: [Option<u64>; 3],
}

impl PipeEnds {
    /// Makes the pipes that `console` asks for; also returns the workload's ends.
    pub fn make(console: Console) -> Result<(Self, [Option<OwnedFd>; 3]), Errno> {
        let none = Self {
            input: None,
            outputs: [None, None],
            inodes: [None; 3],
        };
        let Console::Pipes { stdin } = console else {
            return Ok((none, [None, None, None]));
        };
        let pair = floe_sys::pipe::close_on_exec;
        let (out_read, out_write) = pair()?;
        let (err_read, err_write) = pair()?;
        let (theirs, ours) = if stdin {
            pair().map(|(read, write)| (Some(read), Some(write)))?
        } else {
            (None, None)
        };
        for end in [Some(&out_read), Some(&err_read), ours.as_ref()].into_iter().flatten() {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let streams = [theirs, Some(out_write), Some(err_write)];
        let mut inodes = [None; 3];
        for (inode, stream) in inodes.iter_mut().zip(&streams) {
            *inode = stream.as_ref().map(fstat).transpose()?.map(|stat| stat.st_ino);
        }
        Ok((
            Self {
                input: ours,
                outputs: [Some(out_read), Some(err_read)],
                inodes,
            },
            streams,
        ))
    }

    /// Inode numbers of the pipes.
    pub fn inodes(&self) -> Result<[Option<u64>; 3], Errno> {
        Ok(self.inodes)
    }
}

/// All ends, and the log.
pub struct ConsoleEnds {
    input: Option<OwnedFd>,
    outputs: Vec<(usize, u8, OwnedFd)>,
    is_terminal: bool,
    log: File,
    waiting: VecDeque<u8>,
    input_ends: bool,
    typed: TypedLine,
}

impl ConsoleEnds {
    /// Of pipes.
    pub fn pipes(pipes: PipeEnds, log: File) -> Self {
        let kinds = [kind::OUTPUT, kind::ERROR];
        let outputs = pipes.outputs.into_iter().flatten().zip(kinds).enumerate();
        let outputs = outputs.map(|(index, (fd, kind))| (index, kind, fd)).collect();
        Self {
            input: pipes.input,
            outputs,
            is_terminal: false,
            log,
            waiting: VecDeque::new(),
            input_ends: false,
            typed: TypedLine::default(),
        }
    }

    /// Of a terminal.
    pub fn terminal(master: OwnedFd, log: File) -> Self {
        let outputs = vec![(0, kind::OUTPUT, master)];
        Self {
            input: None,
            outputs,
            is_terminal: true,
            log,
            waiting: VecDeque::new(),
            input_ends: false,
            typed: TypedLine::default(),
        }
    }

    /// Ends that output comes from.
    pub fn outputs(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        self.outputs.iter().map(|(stream, _, fd)| (*stream, fd.as_fd()))
    }

    fn input_end(&self) -> Option<BorrowedFd<'_>> {
        if self.is_terminal {
            return self.outputs.first().map(|(_, _, fd)| fd.as_fd());
        }
        self.input.as_ref().map(AsFd::as_fd)
    }

    /// The end that waits to be written to.
    pub fn pending_input(&self) -> Option<BorrowedFd<'_>> {
        if self.waiting.is_empty() && !self.input_ends {
            None
        } else {
            self.input_end()
        }
    }

    /// Whether more input may come.
    pub fn has_input_room(&self) -> bool {
        self.waiting.len() < INPUT_LIMIT
    }

    /// Takes input from a client.
    pub fn input(&mut self, bytes: &[u8]) {
        if self.input_end().is_some() {
            self.waiting.extend(bytes);
        }
        self.write_input();
    }

    /// A client's input has ended.
    pub fn end_input(&mut self) {
        self.input_ends = !self.is_terminal;
        self.write_input();
    }

    /// Writes waiting input as far as there is room.
    pub fn write_input(&mut self) {
        while !self.waiting.is_empty() {
            let Some(end) = self.input_end() else { break };
            let (front, _) = self.waiting.as_slices();
            let master = end.as_raw_fd();
            match write(end, front) {
                Ok(done) => {
                    if self.is_terminal {
                        self.typed.note(master, &front[..done]);
                    }
                    self.waiting.drain(..done);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // Nobody reads it any more.
                Err(_) => self.waiting.clear(),
            }
        }
        if self.input_ends {
            self.input = None;
            self.input_ends = false;
        }
    }

    /// Input that waits to be written.
    pub fn waiting_input(&self) -> Vec<u8> {
        self.waiting.iter().copied().collect()
    }

    /// Bytes in the log.
    pub fn log_bytes(&self) -> u64 {
        // The log was opened by the monitor, so it can be looked at.
        self.log.metadata().map_or(0, |metadata| metadata.len())
    }

    /// The payload of [`kind::SURVEYED`].
    pub fn survey(&self) -> Vec<u8> {
        let ended = !self.is_terminal && (self.input.is_none() || self.input_ends);
        let mut payload = self.log_bytes().to_le_bytes().to_vec();
        payload.extend([u8::from(ended), u8::from(self.typed.is_unfinished())]);
        payload
    }

    /// Nobody reads this stream any more: whoever writes to it is to notice, as where there is no floe between.
    pub fn close_output(&mut self, kind: u8) {
        if !self.is_terminal {
            self.outputs.retain(|(_, known, _)| *known != kind);
        }
    }

    /// Sets the terminal's size.
    pub fn set_size(&self, rows: u16, cols: u16) {
        if let (true, Some((_, _, master))) = (self.is_terminal, self.outputs.first())
            && let Err(error) = WindowSize::new(rows, cols).apply(master.as_raw_fd())
        {
            tracing::debug!(%error, "set the size of the terminal");
        }
    }

    /// Says something of the monitor's own, in the log and to who reads the workload's errors.
    pub fn note(&mut self, text: &str, clients: &mut Clients) {
        let line = format!("floe: {text}\n");
        if let Err(error) = self.log.write_all(line.as_bytes()) {
            tracing::error!(%error, "write the log");
        }
        clients.tell(kind::ERROR, line.as_bytes());
    }

    /// Reads what a stream has, once; returns whether there may be more.
    pub fn read(&mut self, stream: usize, clients: &mut Clients) -> bool {
        let Some(position) = self.outputs.iter().position(|(known, ..)| *known == stream) else {
            return false;
        };
        let (_, kind, fd) = &self.outputs[position];
        let mut buffer = vec![0; PAYLOAD];
        match read(fd, &mut buffer) {
            Ok(got @ 1..) => {
                if let Err(error) = self.log.write_all(&buffer[..got]) {
                    tracing::error!(%error, "write the log");
                }
                clients.tell(*kind, &buffer[..got]);
                true
            }
            Err(Errno::EINTR) => true,
            Err(Errno::EAGAIN) => false,
            // A pty master answers EIO while no process has the other end open. One may open it again, but only until
            // PID 1 is gone, and then the stream is drained anyway.
            Err(Errno::EIO) if self.is_terminal => {
                self.outputs.remove(position);
                false
            }
            Ok(_) | Err(_) => {
                self.outputs.remove(position);
                false
            }
        }
    }

    /// Reads all that there is.
    pub fn drain(&mut self, clients: &mut Clients) {
        let streams: Vec<usize> = self.outputs.iter().map(|(stream, ..)| *stream).collect();
        for stream in streams {
            while self.read(stream, clients) {}
        }
    }
}
