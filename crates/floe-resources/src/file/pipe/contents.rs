//! What is in a pipe, and a pipe made again with it.

use super::super::{FileError, open_flags, reopen, set_status, was_opened};
use floe_image::record::OpenFileRecord;
use floe_sys::descriptor::{open_in_root, tee};
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

/// A pipe's buffer.
#[derive(Debug, Serialize, Deserialize)]
pub struct PipeContents {
    /// Bytes it can hold (F_GETPIPE_SZ).
    pub capacity: u32,
    /// Bytes in it.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// Copies what is in the pipe behind `end`, which stays as it is. Through an end that can't read only the capacity is
/// learnt. `None` where packets are in it.
pub fn peek(end: BorrowedFd<'_>, reads: bool, title: &str) -> Result<Option<PipeContents>, FileError> {
    let system = |action| FileError::system(action, title);
    let capacity = fcntl(end, FcntlArg::F_GETPIPE_SZ).map_err(system("read the capacity of"))?;
    let mut contents = PipeContents {
        capacity: capacity as u32,
        bytes: Vec::new(),
    };
    if !reads {
        return Ok(Some(contents));
    }
    let (copy_read, copy_write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(system("make a copy of"))?;
    fcntl(copy_write.as_fd(), FcntlArg::F_SETPIPE_SZ(capacity)).map_err(system("make a copy of"))?;
    let there = match tee(end, copy_write.as_fd(), capacity as usize) {
        Ok(bytes) => bytes,
        Err(Errno::EAGAIN) => 0,
        Err(error) => return Err(system("copy the contents of")(error)),
    };
    drop(copy_write);
    contents.bytes.resize(there, 0);
    let first = match there {
        0 => 0,
        _ => read(copy_read.as_fd(), &mut contents.bytes).map_err(system("read the contents of"))?,
    };
    // One read takes out all there is, but for packets, which keep their borders.
    Ok((first == there).then_some(contents))
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
            // A reader without O_NONBLOCK would wait for a writer.
            None => reopen(self.read.as_fd(), open_flags(record) | libc::O_NONBLOCK)?,
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

fn fill(write_end: BorrowedFd<'_>, contents: &PipeContents) -> Result<(), FileError> {
    set_capacity(write_end, contents.capacity)?;
    let mut rest = contents.bytes.as_slice();
    while !rest.is_empty() {
        let done = write(write_end, rest).map_err(FileError::system("fill", "a pipe"))?;
        rest = &rest[done..];
    }
    Ok(())
}

/// Sets how many bytes a pipe can hold.
pub fn set_capacity(end: BorrowedFd<'_>, capacity: u32) -> Result<(), FileError> {
    let object = format!("a pipe of {capacity} bytes");
    let system = |action| FileError::system(action, object.clone());
    let capacity = i32::try_from(capacity).unwrap_or(i32::MAX);
    let now = fcntl(end, FcntlArg::F_GETPIPE_SZ).map_err(system("read the capacity of"))?;
    if now != capacity {
        fcntl(end, FcntlArg::F_SETPIPE_SZ(capacity)).map_err(system("set the capacity of"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{MadePipe, PipeContents, peek};
    use nix::{
        fcntl::OFlag,
        unistd::{pipe2, write},
    };
    use std::os::fd::AsFd;

    #[test]
    fn packets_are_noticed_when_the_pipe_is_none_of_packets_any_more() {
        let (read, packets) = pipe2(OFlag::O_CLOEXEC | OFlag::O_DIRECT).expect("a pipe");
        write(&packets, b"one").expect("write");
        write(&packets, b"two").expect("write");
        assert!(peek(read.as_fd(), true, "test").expect("peek").is_none());
    }

    #[test]
    fn peeking_takes_nothing_out() {
        let made = MadePipe::anonymous(&PipeContents {
            capacity: 8192,
            bytes: b"hello".to_vec(),
        })
        .expect("a pipe");
        for _ in 0..2 {
            let seen = peek(made.read.as_fd(), true, "test")
                .expect("peek")
                .expect("no packets");
            assert_eq!((seen.capacity, seen.bytes.as_slice()), (8192, b"hello".as_slice()));
        }
    }
}
