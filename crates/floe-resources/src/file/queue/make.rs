//! Makes queues again, in the new IPC namespace, and opens all files of them: a queue that has lost its name can be opened
//! only before.

use super::{
    super::{FileError, open_flags, reopen, was_opened},
    files_of,
};
use crate::ns::run_inside;
use floe_image::{
    Image,
    record::{OpenFileRecord, PosixQueueRecord},
};
use floe_sys::{Pid, mqueue};
use nix::{
    errno::Errno,
    sched::CloneFlags,
    sys::stat::{Mode, fchmod},
    unistd::{Gid, Uid, Whence, fchown, lseek},
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

/// Makes all queues of an image in the IPC namespace of `pid`.
///
/// # Errors
/// [`FileError`].
pub fn make_all(pid: Pid, image: &Image) -> Result<MadeQueues, FileError> {
    let queues = &image.sandbox().ipc_objects.posix;
    if queues.is_empty() {
        return Ok(MadeQueues::default());
    }
    let make = || {
        let mut made = HashMap::new();
        // Others may have their names by now.
        let (unlinked, named): (Vec<_>, Vec<_>) = queues.iter().enumerate().partition(|(_, queue)| queue.unlinked);
        for (index, queue) in unlinked.into_iter().chain(named) {
            let files: Vec<&OpenFileRecord> = files_of(index, image.open_files()).collect();
            let opened = make_one(queue, &files).map_err(|error| {
                let name = String::from_utf8_lossy(&queue.name);
                io::Error::new(error.kind(), format!("message queue /{name}: {error}"))
            })?;
            made.extend(opened);
        }
        Ok(MadeQueues(made))
    };
    run_inside(pid, CloneFlags::CLONE_NEWIPC, make).map_err(|source| FileError::System {
        action: "make message queues in",
        object: "the new IPC namespace".to_owned(),
        source: io::Error::other(source),
    })
}

fn make_one(record: &PosixQueueRecord, files: &[&OpenFileRecord]) -> io::Result<Vec<(u32, OwnedFd)>> {
    let name = CString::new(record.name.as_slice())?;
    let size = (u64::from(record.most_messages), u64::from(record.message_bytes));
    let queue = mqueue::open(&name, libc::O_RDWR | libc::O_NONBLOCK, Some(size))?;
    for message in &record.messages {
        mqueue::send(queue.as_fd(), message.priority, &message.text)?;
    }
    fchown(&queue, Some(Uid::from_raw(record.uid)), Some(Gid::from_raw(record.gid)))?;
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
