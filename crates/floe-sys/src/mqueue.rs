//! POSIX message queues, mq_overview(7), of the calling thread's IPC namespace.

use crate::descriptor::owned;
use nix::errno::Errno;
use std::{
    ffi::CStr,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    ptr,
};

/// What a queue takes, and has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Messages at once.
    pub most_messages: u64,
    /// Bytes of the longest message.
    pub message_bytes: u64,
    /// Messages that wait.
    pub messages: u64,
}

/// Opens a queue by its name, which has no slash here; descriptors of queues are always close-on-exec. With `new` (messages at once, bytes of the longest
/// one) it is made, and must not have been there.
///
/// # Errors
/// Those of mq_open(3).
pub fn open(name: &CStr, flags: i32, new: Option<(u64, u64)>) -> Result<OwnedFd, Errno> {
    // SAFETY: zeros are valid numbers.
    let mut attributes: libc::mq_attr = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut flags = flags;
    if let Some((most_messages, message_bytes)) = new {
        attributes.mq_maxmsg = most_messages as i64;
        attributes.mq_msgsize = message_bytes as i64;
        flags |= libc::O_CREAT | libc::O_EXCL;
    }
    // SAFETY: a name that ends with a NUL, numbers, and a structure that is read.
    owned(unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0o600, &raw const attributes) })
}

/// Takes a queue's name away.
///
/// # Errors
/// Those of mq_unlink(3).
pub fn unlink(name: &CStr) -> Result<(), Errno> {
    // SAFETY: a name that ends with a NUL.
    Errno::result(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) }).map(drop)
}

/// What a queue takes, and has.
///
/// # Errors
/// EBADF for what is no queue.
pub fn attributes(queue: BorrowedFd<'_>) -> Result<Attributes, Errno> {
    // SAFETY: zeros are valid numbers.
    let mut found: libc::mq_attr = unsafe { MaybeUninit::zeroed().assume_init() };
    let none = ptr::null::<libc::mq_attr>();
    // SAFETY: nothing is set; there is room for the structure.
    Errno::result(unsafe { libc::syscall(libc::SYS_mq_getsetattr, queue.as_raw_fd(), none, &raw mut found) })?;
    Ok(Attributes {
        most_messages: found.mq_maxmsg as u64,
        message_bytes: found.mq_msgsize as u64,
        messages: found.mq_curmsgs as u64,
    })
}

/// Sends a message, where that needs no waiting (O_NONBLOCK).
///
/// # Errors
/// Those of mq_send(3).
pub fn send(queue: BorrowedFd<'_>, priority: u32, text: &[u8]) -> Result<(), Errno> {
    let none = ptr::null::<libc::timespec>();
    // SAFETY: the text is valid for its length; no time is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mq_timedsend,
            queue.as_raw_fd(),
            text.as_ptr(),
            text.len(),
            priority,
            none,
        )
    };
    Errno::result(result).map(drop)
}
