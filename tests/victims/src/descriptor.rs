//! What a program can see of a descriptor without changing it.

use crate::{Findings, call, pattern};
use std::{
    ffi::CString,
    fs::File,
    io,
    mem::ManuallyDrop,
    os::{
        fd::{FromRawFd, RawFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, MetadataExt},
        },
    },
    path::Path,
};

/// Everything but which file it is, which a deleted file does not keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// F_GETFL.
    pub flags: i32,
    /// FD_CLOEXEC.
    pub close_on_exec: bool,
    /// lseek(2); `None` for what has no position.
    pub position: Option<i64>,
    /// Type and permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Bytes.
    pub size: u64,
    /// When it was changed last, in nanoseconds.
    pub modified: i128,
}

impl Seen {
    /// Looks at a descriptor.
    ///
    /// # Panics
    /// Where it is none.
    #[must_use]
    pub fn of(fd: RawFd) -> Self {
        let metadata = borrowed(fd).metadata().expect("fstat");
        Self {
            flags: call::fcntl(fd, libc::F_GETFL, 0).expect("F_GETFL"),
            close_on_exec: call::fcntl(fd, libc::F_GETFD, 0).expect("F_GETFD") & libc::FD_CLOEXEC != 0,
            position: seek(fd, 0, libc::SEEK_CUR).ok(),
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            size: metadata.size(),
            modified: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
        }
    }

    /// Notes it where the descriptor looks another way now.
    pub fn compare(&self, findings: &mut Findings, what: &str, fd: RawFd) {
        if call::fcntl(fd, libc::F_GETFD, 0).is_err() {
            return findings.add(format!("{what}: descriptor {fd} is not open"));
        }
        let now = Self::of(fd);
        findings.that(*self == now, format!("{what}: was {self:?}, is {now:?}"));
    }
}

/// The open file behind a number that the victim owns.
#[must_use]
pub fn borrowed(fd: RawFd) -> ManuallyDrop<File> {
    // SAFETY: the victim opened `fd` and closes it nowhere else while this is used; the result never closes it.
    ManuallyDrop::new(unsafe { File::from_raw_fd(fd) })
}

/// open(2); files are made with mode 0640.
///
/// # Panics
/// Where the file can't be opened.
#[must_use]
pub fn open(path: &Path, flags: i32) -> RawFd {
    try_open(path, flags).unwrap_or_else(|error| panic!("open {}: {error}", path.display()))
}

/// open(2); files are made with mode 0640.
///
/// # Errors
/// errno.
pub fn try_open(path: &Path, flags: i32) -> io::Result<RawFd> {
    let name = CString::new(path.as_os_str().as_bytes()).expect("paths of victims hold no NUL");
    // SAFETY: a string that ends with a NUL.
    call::checked(unsafe { libc::open(name.as_ptr(), flags, 0o640) }.into()).map(|fd| fd as RawFd)
}

/// lseek(2).
///
/// # Errors
/// errno.
pub fn seek(fd: RawFd, offset: i64, whence: i32) -> io::Result<i64> {
    // SAFETY: plain numbers.
    call::checked(unsafe { libc::lseek(fd, offset, whence) })
}

/// Duplicates a descriptor to a number of choice.
///
/// # Panics
/// Where that number can't be had.
pub fn place(fd: RawFd, number: RawFd, flags: i32) {
    // SAFETY: plain numbers; victims choose numbers that are free.
    let status = unsafe { libc::dup3(fd, number, flags) };
    assert!(status == number, "dup3 to {number}: {}", io::Error::last_os_error());
}

/// Notes it where the file's bytes from `offset` are not the pattern of `seed`.
pub fn compare_content(findings: &mut Findings, what: &str, fd: RawFd, offset: u64, len: usize, seed: u64) {
    let mut now = vec![0; len];
    if let Err(error) = borrowed(fd).read_exact_at(&mut now, offset) {
        return findings.add(format!("{what}: read {len} bytes at {offset}: {error}"));
    }
    if let Some(at) = pattern::difference(&now, &pattern::bytes(len, seed)) {
        findings.add(format!("{what}: differs at byte {}", offset + at as u64));
    }
}

/// Some more names of a directory, by getdents64(2) with room for so many bytes; none at its end.
///
/// # Errors
/// errno.
pub fn entries(fd: RawFd, room: usize) -> io::Result<Vec<String>> {
    let mut buffer = vec![0u8; room];
    let arguments = [fd as usize, buffer.as_mut_ptr() as usize, buffer.len()];
    // SAFETY: the buffer has the stated length.
    let got = unsafe { call::raw(libc::SYS_getdents64, &arguments) }? as usize;
    let mut names = Vec::new();
    let mut at = 0;
    while at < got {
        // struct linux_dirent64: inode (8), offset (8), record length (2), type (1), name.
        let length = usize::from(u16::from_ne_bytes([buffer[at + 16], buffer[at + 17]]));
        let name = &buffer[at + 19..at + length];
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        names.push(String::from_utf8_lossy(&name[..end]).into_owned());
        at += length;
    }
    Ok(names)
}
