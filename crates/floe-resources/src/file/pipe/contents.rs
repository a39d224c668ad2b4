//! What is in a pipe, and a pipe made again with it.

use super::super::{FileError, open_flags, reopen, set_status, was_opened};
use floe_image::record::OpenFileRecord;
use floe_sys::descriptor::{bytes_to_read, open_in_root, splice, tee};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{pipe2, read, write},
};
use serde::{Deserialize, Serialize};
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

/// What a pipe holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeContents {
    /// Bytes it can hold (F_GETPIPE_SZ).
    pub capacity: u32,
    /// Bytes in it.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// The buffers that they are in, which a pipe can have as many of as its capacity has pages.
    pub buffers: Vec<Buffer>,
}

/// A buffer, which has a page of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Bytes in it.
    pub length: u32,
    /// Whether it was written in packet mode (O_DIRECT): no read goes on behind it, and what a read leaves of it is lost.
    pub packet: bool,
}

const PAGE: usize = 4096;

impl PipeContents {
    fn empty(capacity: u32) -> Self {
        Self {
            capacity,
            bytes: Vec::new(),
            buffers: Vec::new(),
        }
    }

    pub fn has_packets(&self) -> bool {
        self.buffers.iter().any(|buffer| buffer.packet)
    }

    /// Whether buffers of a page each hold all of it. Those that came from sockets may be larger.
    pub fn fits(&self) -> bool {
        self.buffers.len() * PAGE <= self.capacity as usize
    }

    fn add(&mut self, bytes: &[u8], packet: bool) {
        self.bytes.extend(bytes);
        let pieces = bytes.chunks(PAGE).map(|piece| Buffer {
            length: piece.len() as u32,
            packet,
        });
        self.buffers.extend(pieces);
    }

    /// The bytes of each buffer, and whether it is a packet; `None` where there are no such buffers.
    fn split(&self) -> Option<Vec<(&[u8], bool)>> {
        let mut rest = self.bytes.as_slice();
        let mut all = Vec::new();
        for buffer in &self.buffers {
            let length = buffer.length as usize;
            let (bytes, behind) = rest.split_at_checked(length).filter(|_| (1..=PAGE).contains(&length))?;
            all.push((bytes, buffer.packet));
            rest = behind;
        }
        rest.is_empty().then_some(all)
    }
}

/// Copies what is in the pipe behind `end`, which stays as it is. Through an end that can't read only the capacity is
/// learnt.
pub fn peek(end: BorrowedFd<'_>, reads: bool, title: &str, own: &mut OwnPipes) -> Result<PipeContents, FileError> {
    let system = |action| FileError::system(action, title);
    let capacity = fcntl(end, FcntlArg::F_GETPIPE_SZ).map_err(system("read the capacity of"))?;
    let mut contents = PipeContents::empty(capacity as u32);
    // A user may have no pages for more pipes (fs.pipe-user-pages-soft), and most are empty.
    if !reads || bytes_to_read(end).map_err(system("see what waits in"))? == 0 {
        return Ok(contents);
    }
    let copy = match own.copy.take().filter(|(_, of)| *of == capacity) {
        Some((copy, _)) => copy,
        None => pipe_of(capacity).map_err(|error| refused_size(error, "make a copy of", title))?,
    };
    // A limit that no pipe reaches, though buffers may be larger than pages.
    let mut left = match tee(end, copy.1.as_fd(), i32::MAX as usize) {
        Ok(bytes) => bytes,
        Err(Errno::EAGAIN) => 0,
        Err(error) => return Err(system("copy the contents of")(error)),
    };
    let probe = match own.probe.take() {
        Some(probe) => probe,
        None => pipe_of(2 * PAGE as i32).map_err(system("make a copy of"))?,
    };
    while left > 0 {
        let (bytes, packet) = take_buffer(copy.0.as_fd(), &probe).map_err(system("read the contents of"))?;
        left -= bytes.len();
        contents.add(&bytes, packet);
    }
    (own.copy, own.probe) = (Some((copy, capacity)), Some(probe));
    Ok(contents)
}

/// The end that reads, and the one that writes.
type Ends = (OwnedFd, OwnedFd);

/// Pipes of floe's own through which others are looked at: one for a copy, of a capacity, and one for single buffers. They
/// are empty between two looks.
#[derive(Debug, Default)]
pub struct OwnPipes {
    copy: Option<(Ends, i32)>,
    probe: Option<Ends>,
}

/// A pipe of floe's own.
fn pipe_of(capacity: i32) -> Result<Ends, Errno> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    fcntl(write.as_fd(), FcntlArg::F_SETPIPE_SZ(capacity))?;
    Ok((read, write))
}

/// Takes the first buffer out of a pipe that tee(2) filled, through a pipe that has room for two: its bytes, and whether it
/// is a packet.
fn take_buffer(from: BorrowedFd<'_>, (read_end, write_end): &Ends) -> Result<(Vec<u8>, bool), Errno> {
    const MARK: &[u8] = b".";
    write(write_end, MARK)?;
    let length = splice(from, write_end.as_fd(), i32::MAX as usize)?;
    read(read_end.as_fd(), &mut [0])?;
    // Copies of buffers take nothing more, so this is one behind it, which a read gets too unless a packet ends it.
    write(write_end, MARK)?;
    let mut bytes = vec![0; length + MARK.len()];
    let packet = read(read_end.as_fd(), &mut bytes)? == length;
    if packet {
        read(read_end.as_fd(), &mut [0])?;
    }
    bytes.truncate(length);
    Ok((bytes, packet))
}

/// A pipe made again. It keeps an end open until all ends of the tree have been opened.
#[derive(Debug)]
pub struct MadePipe {
    /// Reads, so that no other end has to wait for a reader.
    read: OwnedFd,
    /// Writes; a named pipe has none, so that its readers are opened as if there had never been a writer.
    write: Option<OwnedFd>,
}

impl MadePipe {
    pub fn anonymous(contents: &PipeContents) -> Result<Self, FileError> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(FileError::system("make", "a pipe"))?;
        fill(write.as_fd(), contents)?;
        Ok(Self {
            read,
            write: Some(write),
        })
    }

    /// By a fifo that was opened for reading without waiting.
    pub fn named(read: OwnedFd, contents: &PipeContents) -> Result<Self, FileError> {
        let write = reopen(read.as_fd(), libc::O_WRONLY | libc::O_NONBLOCK)?;
        fill(write.as_fd(), contents)?;
        Ok(Self { read, write: None })
    }

    /// The end that pipe(2) made.
    fn original(&self, record: &OpenFileRecord) -> Option<&OwnedFd> {
        match record.flags as i32 & libc::O_ACCMODE {
            _ if was_opened(record) => None,
            libc::O_RDONLY => Some(&self.read),
            libc::O_WRONLY => self.write.as_ref(),
            _ => None,
        }
    }

    /// The end that `record` describes. One that has been `hung_up` on sees that a writer was there once.
    pub fn open(&self, record: &OpenFileRecord, hung_up: bool) -> Result<OwnedFd, FileError> {
        let _writer = match hung_up {
            true => Some(reopen(self.read.as_fd(), libc::O_WRONLY | libc::O_NONBLOCK)?),
            false => None,
        };
        let end = match self.original(record) {
            Some(end) => end.try_clone().map_err(|source| FileError::System {
                action: "duplicate",
                object: "an end of a pipe".to_owned(),
                source,
            })?,
            // A reader without O_NONBLOCK would wait for a writer; O_DIRECT is for F_SETFL to set.
            None => reopen(
                self.read.as_fd(),
                open_flags(record) & !libc::O_DIRECT | libc::O_NONBLOCK,
            )?,
        };
        set_status(end.as_fd(), record)?;
        Ok(end)
    }
}

/// Whether somebody has the fifo at `path` open. Opens it for a moment without waiting.
pub fn in_use(root: BorrowedFd<'_>, path: &Path) -> Result<bool, Errno> {
    match open_in_root(root, path, libc::O_WRONLY | libc::O_NONBLOCK, 0) {
        Err(Errno::ENXIO) => {}
        Ok(_) => return Ok(true),
        Err(error) => return Err(error),
    }
    let read = open_in_root(root, path, libc::O_RDONLY | libc::O_NONBLOCK, 0)?;
    let (_copy, copy_write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    match tee(read.as_fd(), copy_write.as_fd(), 1) {
        Ok(bytes) => Ok(bytes > 0),
        // A writer, who has written nothing.
        Err(Errno::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Buffer by buffer. What would be added to the buffer before it, or is a packet, is written into a pipe beside and moved
/// here whole.
fn fill(write_end: BorrowedFd<'_>, contents: &PipeContents) -> Result<(), FileError> {
    set_capacity(write_end, contents.capacity)?;
    let wrong = || FileError::Unknown {
        id: 0,
        what: "there is no pipe with such buffers".to_owned(),
    };
    let system = || FileError::system("fill", "a pipe");
    let (mut plain, mut packets) = (None, None);
    let mut takes_more = false;
    for (bytes, is_packet) in contents.split().ok_or_else(wrong)? {
        if is_packet {
            move_through(&mut packets, OFlag::O_DIRECT, bytes, write_end).map_err(system())?;
        } else if takes_more {
            move_through(&mut plain, OFlag::empty(), bytes, write_end).map_err(system())?;
        } else {
            write(write_end, bytes).map_err(system())?;
        }
        takes_more = !is_packet && bytes.len() < PAGE;
    }
    Ok(())
}

/// Writes into a pipe that has room for a buffer, made with flags if it is not there yet, and moves the buffer on.
fn move_through(pipe: &mut Option<Ends>, flags: OFlag, bytes: &[u8], to: BorrowedFd<'_>) -> Result<(), Errno> {
    if pipe.is_none() {
        let made = pipe_of(PAGE as i32)?;
        fcntl(made.1.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        *pipe = Some(made);
    }
    let (read_end, write_end) = pipe.as_ref().ok_or(Errno::EPIPE)?;
    write(write_end, bytes)?;
    splice(read_end.as_fd(), to, bytes.len())?;
    Ok(())
}

/// Sets how many bytes a pipe can hold.
pub fn set_capacity(end: BorrowedFd<'_>, capacity: u32) -> Result<(), FileError> {
    let object = format!("a pipe of {capacity} bytes");
    let capacity = i32::try_from(capacity).unwrap_or(i32::MAX);
    let now = fcntl(end, FcntlArg::F_GETPIPE_SZ).map_err(FileError::system("read the capacity of", object.clone()))?;
    if now != capacity {
        let set = fcntl(end, FcntlArg::F_SETPIPE_SZ(capacity));
        set.map_err(|error| refused_size(error, "set the capacity of", object))?;
    }
    Ok(())
}

/// What is to be told where a pipe can't have a size.
fn refused_size(error: Errno, action: &'static str, object: impl Into<String>) -> FileError {
    let object = object.into();
    let object = match error {
        Errno::EPERM => format!("{object} (the pipes of a user may take so much memory: fs.pipe-user-pages-soft)"),
        _ => object,
    };
    FileError::system(action, object)(error)
}

#[cfg(test)]
mod tests {
    use super::{Buffer, MadePipe, OwnPipes, PipeContents, peek};
    use nix::{
        fcntl::{FcntlArg, OFlag, fcntl},
        unistd::{pipe2, write},
    };
    use std::os::fd::AsFd;

    fn peeked(end: &impl AsFd) -> PipeContents {
        peek(end.as_fd(), true, "test", &mut OwnPipes::default()).expect("peek")
    }

    #[test]
    fn borders_of_buffers_and_packets_are_seen_and_made_again() {
        let (read, written) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a pipe");
        let set = |flags| fcntl(&written, FcntlArg::F_SETFL(flags)).expect("F_SETFL");
        write(&written, b"plain").expect("write");
        write(&written, &[7; 4096]).expect("write");
        set(OFlag::O_DIRECT);
        write(&written, b"1").expect("write");
        write(&written, b"one").expect("write");
        set(OFlag::empty());
        write(&written, b"two").expect("write");
        let seen = peeked(&read);
        let buffers: Vec<_> = seen.buffers.iter().map(|one| (one.length, one.packet)).collect();
        let wanted = [(5, false), (4096, false), (1, true), (3, true), (3, false)];
        assert_eq!(buffers, wanted);
        assert!(seen.has_packets() && seen.fits());
        let made = MadePipe::anonymous(&seen).expect("a pipe");
        for _ in 0..2 {
            assert_eq!(peeked(&made.read), seen);
        }
        assert_eq!(peeked(&read), seen);
    }

    #[test]
    fn no_buffers_are_made_that_the_image_has_no_bytes_for() {
        let buffer = |length| Buffer { length, packet: false };
        for buffers in [
            vec![],
            vec![buffer(5)],
            vec![buffer(3), buffer(0)],
            vec![buffer(3), buffer(u32::MAX)],
        ] {
            let contents = PipeContents {
                capacity: 4096,
                bytes: b"any".to_vec(),
                buffers,
            };
            assert!(MadePipe::anonymous(&contents).is_err());
        }
    }
}
