//! What is in a pipe, and a pipe made again with it.

use super::super::FileError;
use floe_sys::descriptor::tee;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{pipe2, read, write},
};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A pipe's buffer.
#[derive(Debug, Serialize, Deserialize)]
pub struct PipeContents {
    /// Bytes it can hold (F_GETPIPE_SZ).
    pub capacity: u32,
    /// Bytes in it.
    pub bytes: Vec<u8>,
}

/// Copies what is in the pipe behind `end`, which stays as it is. Through an end that can't read only the capacity is
/// learnt.
pub fn peek(end: BorrowedFd<'_>, reads: bool, title: &str) -> Result<PipeContents, FileError> {
    let system = |action| FileError::system(action, title);
    let capacity = fcntl(end, FcntlArg::F_GETPIPE_SZ).map_err(system("read the capacity of"))?;
    let mut contents = PipeContents {
        capacity: capacity as u32,
        bytes: Vec::new(),
    };
    if !reads {
        return Ok(contents);
    }
    let (copy_read, copy_write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(system("make a copy of"))?;
    fcntl(copy_write.as_fd(), FcntlArg::F_SETPIPE_SZ(capacity)).map_err(system("make a copy of"))?;
    match tee(end, copy_write.as_fd(), capacity as usize) {
        Ok(_) | Err(Errno::EAGAIN) => {}
        Err(error) => return Err(system("copy the contents of")(error)),
    }
    drop(copy_write);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match read(copy_read.as_fd(), &mut buffer) {
            Ok(0) => return Ok(contents),
            Ok(got) => contents.bytes.extend_from_slice(&buffer[..got]),
            Err(error) => return Err(system("read the contents of")(error)),
        }
    }
}

/// A pipe made again. It keeps both ends open until all ends of the tree have been opened.
#[derive(Debug)]
pub struct MadePipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl MadePipe {
    pub fn anonymous(contents: &PipeContents) -> Result<Self, FileError> {
        let system = |action| FileError::system(action, "a pipe");
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(system("make"))?;
        let made = Self { read, write };
        made.fill(contents)?;
        Ok(made)
    }

    pub fn named(both: OwnedFd, contents: &PipeContents) -> Result<Self, FileError> {
        let write = both.try_clone().map_err(|source| FileError::System {
            action: "duplicate",
            object: "a fifo".to_owned(),
            source,
        })?;
        let made = Self { read: both, write };
        made.fill(contents)?;
        Ok(made)
    }

    pub fn any_end(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    fn fill(&self, contents: &PipeContents) -> Result<(), FileError> {
        let object = format!("a pipe of {} bytes", contents.capacity);
        let system = |action| FileError::system(action, object.clone());
        let capacity = i32::try_from(contents.capacity).unwrap_or(i32::MAX);
        let now = fcntl(self.write.as_fd(), FcntlArg::F_GETPIPE_SZ).map_err(system("read the capacity of"))?;
        if now != capacity {
            fcntl(self.write.as_fd(), FcntlArg::F_SETPIPE_SZ(capacity)).map_err(system("set the capacity of"))?;
        }
        let mut rest = contents.bytes.as_slice();
        while !rest.is_empty() {
            let done = write(self.write.as_fd(), rest).map_err(system("fill"))?;
            rest = &rest[done..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{MadePipe, PipeContents, peek};
    use std::os::fd::AsFd;

    #[test]
    fn peeking_takes_nothing_out() {
        let made = MadePipe::anonymous(&PipeContents {
            capacity: 8192,
            bytes: b"hello".to_vec(),
        })
        .expect("a pipe");
        for _ in 0..2 {
            let seen = peek(made.read.as_fd(), true, "test").expect("peek");
            assert_eq!((seen.capacity, seen.bytes.as_slice()), (8192, b"hello".as_slice()));
        }
    }
}
