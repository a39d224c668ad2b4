//! Makes the objects again, in new IPC namespaces, with their identifiers.

use super::{IpcError, namespace};
use crate::ns::run_in;
use floe_image::record::{AdjustmentRecord, IpcPermission, IpcRecord, QueueRecord, SegmentRecord};
use floe_sys::sysv::{self, Attachment, Kind, Permission, Segment};
use floe_tracee::{Puppet, PuppetError, Script};
use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::BorrowedFd,
};

/// A segment that was made, and its memory as a file.
#[derive(Debug)]
pub struct SegmentFile {
    /// Its identifier.
    pub id: i32,
    /// Bytes of all its pages.
    pub size: u64,
    /// Bytes of a page of hugetlbfs; 0 for ordinary ones.
    pub huge_page: u64,
    /// Its memory, all zeros.
    pub file: File,
}

/// Makes all objects of `record` in an IPC namespace; semaphores and queues with what is in them.
///
/// # Errors
/// [`IpcError`].
pub fn make(space: BorrowedFd<'_>, record: &IpcRecord) -> Result<Vec<SegmentFile>, IpcError> {
    if *record == IpcRecord::default() {
        return Ok(Vec::new());
    }
    let make_all = || {
        for set in &record.semaphores {
            sysv::make_semaphores(&permission(&set.permission), &set.values)
                .map_err(about("semaphore set", set.permission.id))?;
        }
        for queue in &record.queues {
            make_queue(queue).map_err(about("message queue", queue.permission.id))?;
        }
        let segment = |record| make_segment(record).map_err(about("shared memory", record.permission.id));
        record.segments.iter().map(segment).collect()
    };
    run_in(space, make_all).map_err(namespace("make System V IPC objects"))
}

/// Names the object that could not be made.
fn about(what: &'static str, id: i32) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what} {id}: {error}"))
}

fn permission(record: &IpcPermission) -> Permission {
    Permission {
        id: record.id,
        key: record.key,
        mode: record.mode,
        owner: (record.uid, record.gid),
        creator: (record.creator_uid, record.creator_gid),
    }
}

fn make_segment(record: &SegmentRecord) -> io::Result<SegmentFile> {
    let permission = permission(&record.permission);
    sysv::make_segment(&permission, record.size, record.huge_page)?;
    let segment = Segment {
        permission,
        size: record.size,
        attached: 0,
    };
    let attachment = Attachment::new(&segment)?;
    let file = OpenOptions::new().read(true).write(true).open(attachment.link())?;
    if record.locked {
        sysv::lock(permission.id)?;
    }
    Ok(SegmentFile {
        id: permission.id,
        size: record.whole(),
        huge_page: record.huge_page,
        file,
    })
}

fn make_queue(record: &QueueRecord) -> io::Result<()> {
    let id = record.permission.id;
    sysv::make_queue(&permission(&record.permission))?;
    // A queue may hold more than it takes by now.
    let held: u64 = record.messages.iter().map(|message| message.text.len() as u64).sum();
    let room = record.capacity.max(held).max(record.messages.len() as u64);
    sysv::set_capacity(id, room)?;
    for message in &record.messages {
        sysv::send(id, message.kind, &message.text)?;
    }
    sysv::set_capacity(id, record.capacity)
}

/// Removes the segments that go when they are attached no more; everybody must have attached them by now.
///
/// # Errors
/// [`IpcError`].
pub fn remove_segments(space: BorrowedFd<'_>, record: &IpcRecord) -> Result<(), IpcError> {
    let mut removed = record.segments.iter().filter(|segment| segment.removed).peekable();
    if removed.peek().is_none() {
        return Ok(());
    }
    let remove_all = || removed.try_for_each(|segment| sysv::remove(Kind::Segment, segment.permission.id));
    run_in(space, remove_all).map_err(namespace("remove System V shared memory"))
}

/// Has a task, which is in the namespace, adjust semaphores when it ends, as it did. It adds and takes what comes to nothing,
/// but is to undo the one half of it, in a call that nobody can come between.
///
/// # Errors
/// [`PuppetError`].
pub fn adjust(puppet: &Puppet, adjustment: &AdjustmentRecord) -> Result<(), PuppetError> {
    /// SEMOPM of linux/sem.h, halved.
    const MOST: usize = 250;
    let mut script = Script::new(puppet);
    let numbered = (0_u16..).zip(&adjustment.values).filter(|(_, value)| **value != 0);
    let numbered: Vec<(u16, i16)> = numbered.map(|(number, value)| (number, *value)).collect();
    for some in numbered.chunks(MOST) {
        let operations: Vec<u8> = some
            .iter()
            .flat_map(|(number, value)| undone(*number, *value))
            .collect();
        let batch = script.reserve(1, operations.len() + 16)?;
        let place = batch.data(&operations);
        let arguments = [adjustment.set as u64, place, 2 * some.len() as u64];
        batch.call("adjust semaphores at its end", libc::SYS_semop, &arguments);
    }
    script.run().map(drop)
}

/// Two of struct sembuf. What takes comes second.
fn undone(number: u16, adjustment: i16) -> Vec<u8> {
    let operation = |value: i16, flags: i16| {
        let words = [number.to_ne_bytes(), value.to_ne_bytes(), flags.to_ne_bytes()];
        words.concat()
    };
    let undo = libc::SEM_UNDO as i16;
    let (plain, undoing) = (operation(adjustment, 0), operation(-adjustment, undo));
    if adjustment > 0 {
        [plain, undoing].concat()
    } else {
        [undoing, plain].concat()
    }
}
