//! Makes queues again, in new IPC namespaces, and opens all files of them: a queue that has lost its name can be opened
//! only before.

use super::{
    super::{FileError, open_flags, reopen, was_opened},
    files_of,
};
use crate::ns::{Known, run_in};
use floe_image::{
    Image,
    record::{OpenFileRecord, PosixQueueRecord},
};
use floe_sys::{capability::making_files_of, mqueue};
use nix::{
    errno::Errno,
    sys::stat::{Mode, fchmod},
    unistd::{Whence, lseek},
};
use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, OwnedFd},
};

/// Files of queues that were opened, by their number in the image.
#[derive(Debug, Default)]
pub struct MadeQueues(HashMap<u32, OwnedFd>);

impl MadeQueues {
    /// A file, which is asked for once.
    pub(super) fn take(&mut self, id: u32) -> Option<OwnedFd> {
        self.0.remove(&id)
    }
}

/// Makes all queues of an image in their IPC namespaces.
///
/// # Errors
/// [`FileError`].
pub fn make_all(known: &Known, image: &Image) -> Result<MadeQueues, FileError> {
    let mut made = HashMap::new();
    for (number, record) in image.sandbox().ipc_namespaces() {
        if record.posix.is_empty() {
            continue;
        }
        let failed = |source| FileError::System {
            action: "make message queues in",
            object: format!("IPC namespace {number} of the image"),
            source,
        };
        let namespace = known
            .ipc(number)
            .ok_or(io::ErrorKind::NotFound.into())
            .map_err(failed)?;
        let opened = run_in(namespace, || make_in((number, &record.posix), image.open_files()));
        made.extend(opened.map_err(failed)?);
    }
    Ok(MadeQueues(made))
}

/// Those of the namespace that the calling thread is in; their files by number.
fn make_in(
    (namespace, queues): (u32, &[PosixQueueRecord]),
    files: &[OpenFileRecord],
) -> io::Result<Vec<(u32, OwnedFd)>> {
    let mut made = Vec::new();
    // Others may have their names by now.
    let (unlinked, named): (Vec<_>, Vec<_>) = queues.iter().enumerate().partition(|(_, queue)| queue.unlinked);
    for (index, queue) in unlinked.into_iter().chain(named) {
        let files: Vec<&OpenFileRecord> = files_of((namespace, index), files).collect();
        let opened = make_one(queue, &files).map_err(|error| {
            let name = String::from_utf8_lossy(&queue.name);
            io::Error::new(error.kind(), format!("message queue /{name}: {error}"))
        })?;
        made.extend(opened);
    }
    Ok(made)
}

fn make_one(record: &PosixQueueRecord, files: &[&OpenFileRecord]) -> io::Result<Vec<(u32, OwnedFd)>> {
    let name = CString::new(record.name.as_slice())?;
    let size = (u64::from(record.most_messages), u64::from(record.message_bytes));
    let make = || mqueue::open(&name, libc::O_RDWR | libc::O_NONBLOCK, Some(size));
    // The user namespace that the queues are of knows this user, which floe need not be.
    let queue = making_files_of((record.uid, record.gid), make)??;
    for message in &record.messages {
        mqueue::send(queue.as_fd(), message.priority, &message.text)?;
    }
    fchmod(&queue, Mode::from_bits_truncate(record.mode))?;
    let opened = files.iter().map(|file| Ok((file.id, open(&name, &queue, file)?)));
    let opened = opened.collect::<io::Result<_>>()?;
    if record.unlinked {
        mqueue::unlink(&name)?;
    }
    Ok(opened)
}

/// By mq_open(3), or by open(2) where it was opened so.
fn open(name: &CStr, queue: &OwnedFd, record: &OpenFileRecord) -> io::Result<OwnedFd> {
    let flags = open_flags(record);
    let opened = if was_opened(record) {
        reopen(queue.as_fd(), flags).map_err(io::Error::other)?
    } else {
        mqueue::open(name, flags & !libc::O_NOCTTY, None)?
    };
    if record.position > 0 {
        let position = i64::try_from(record.position).map_err(|_| Errno::EINVAL)?;
        lseek(&opened, position, Whence::SeekSet)?;
    }
    Ok(opened)
}
