//! Reads the objects of IPC namespaces.

use super::{IpcError, IpcSpace, namespace};
use crate::{
    mm::{ContentPlace, ContentSource, Contents},
    ns::run_in,
    refusal::Refusals,
    tree::{FoundProcess, FoundTree},
};
use floe_image::record::{
    AdjustmentRecord, ContentOwner, IpcPermission, IpcRecord, MessageRecord, NsPid, ProcessRecord, QueueRecord,
    SegmentRecord, SemaphoreSetRecord,
};
use floe_sys::{
    Pid, fork,
    kcmp::{self, Resource},
    kernel::semaphore_adjustments,
    sysv::{self, Attachment, Permission, Queue, SHM_DEST, SHM_LOCKED, Segment},
};
use nix::{errno::Errno, sys::wait::waitpid};
use std::{cmp::Ordering, collections::HashMap, io};

/// What is in a namespace besides segments, as it is read.
type Found = (Vec<(Permission, Vec<u16>)>, Vec<(Queue, Vec<MessageRecord>)>);

/// The System V objects of the IPC namespaces of a tree, whose mappings were looked at before, by the numbers of these.
/// `processes` are records of its processes. Contents of segments are noted in `contents`.
///
/// # Errors
/// [`IpcError`].
pub fn dump(
    (tree, processes): (&FoundTree, &[ProcessRecord]),
    contents: &mut Contents,
    refusals: &mut Refusals,
) -> Result<Vec<(u32, IpcRecord)>, IpcError> {
    let spaces = std::mem::take(&mut contents.ipc);
    let dump = |space| {
        let users = Users::of(tree, processes, space);
        Ok((space.number, dump_one(space, &users, (&mut *contents, &mut *refusals))?))
    };
    let dumped = spaces.all().iter().map(dump).collect();
    contents.ipc = spaces;
    dumped
}

fn dump_one(
    space: &IpcSpace,
    users: &Users<'_>,
    (contents, refusals): (&mut Contents, &mut Refusals),
) -> Result<IpcRecord, IpcError> {
    let (mut sets, mut queues) = run_in(space.file(), read).map_err(namespace("read System V IPC objects"))?;
    sets.sort_by_key(|(permission, _)| permission.id);
    queues.sort_by_key(|(queue, _)| queue.permission.id);
    let adjustments = if sets.is_empty() {
        Vec::new()
    } else {
        adjustments(users, &sets, refusals)?
    };
    let mut records = Vec::with_capacity(space.segments.len());
    for segment in &space.segments {
        let huge_page = segment_content(space, segment, (contents, refusals))?;
        records.push(segment_record(segment, huge_page));
    }
    refuse_foreign(space, contents, refusals);
    Ok(IpcRecord {
        segments: records,
        semaphores: sets
            .into_iter()
            .map(|(found, values)| SemaphoreSetRecord {
                permission: permission(&found),
                values,
            })
            .collect(),
        adjustments,
        queues: queues
            .into_iter()
            .map(|(found, messages)| QueueRecord {
                permission: permission(&found.permission),
                capacity: found.capacity,
                messages,
            })
            .collect(),
        posix: Vec::new(),
    })
}

fn read() -> io::Result<Found> {
    let mut queues = Vec::new();
    for queue in sysv::queues()? {
        let message = |index| {
            let (kind, text) = sysv::peek(queue.permission.id, index, queue.bytes as usize)?;
            Ok(MessageRecord { kind, text })
        };
        let messages = (0..queue.messages).map(message).collect::<io::Result<_>>()?;
        queues.push((queue, messages));
    }
    Ok((sysv::semaphore_sets()?, queues))
}

fn permission(found: &Permission) -> IpcPermission {
    IpcPermission {
        id: found.id,
        key: found.key,
        mode: found.mode & 0o777,
        uid: found.owner.0,
        gid: found.owner.1,
        creator_uid: found.creator.0,
        creator_gid: found.creator.1,
    }
}

fn segment_record(found: &Segment, huge_page: u64) -> SegmentRecord {
    SegmentRecord {
        huge_page,
        permission: permission(&found.permission),
        size: found.size,
        removed: found.permission.mode & SHM_DEST != 0,
        locked: found.permission.mode & SHM_LOCKED != 0,
    }
}

/// Notes where to read a segment's content: in a task that has it attached, or where nobody has, in floe itself. Returns
/// bytes of a page of hugetlbfs, or 0.
fn segment_content(
    space: &IpcSpace,
    segment: &Segment,
    (contents, refusals): (&mut Contents, &mut Refusals),
) -> Result<u64, IpcError> {
    let (namespace, id) = (space.number, segment.permission.id);
    let link = match contents.segments.get(&(namespace, id)) {
        Some(found) => found.link.clone(),
        None if segment.attached > 0 => return Ok(0),
        None => {
            let attachment = run_in(space.file(), || Attachment::new(segment))
                .map_err(super::namespace("attach System V shared memory"))?;
            let link = attachment.link();
            contents.attachments.push(attachment);
            link
        }
    };
    let huge_page = match contents.huge_page(&link) {
        Err(error) if error.source.kind() == io::ErrorKind::PermissionDenied => {
            refusals.add(
                None,
                title(space, id),
                "only the host's root may look at what is mapped and has no name",
                "ipcrm it, or run floe as root",
            );
            return Ok(0);
        }
        found => found?,
    };
    contents.sources.push(ContentSource {
        owner: ContentOwner::Segment { namespace, id },
        place: ContentPlace::Link(link.into()),
        size: segment.size,
    });
    Ok(huge_page)
}

fn title(space: &IpcSpace, id: i32) -> String {
    space.title(&format!("System V shared memory {id}"))
}

/// Each mapping counts as an attachment: where the kernel counts others than were found, somebody else has the segment
/// attached or a task has a stranger's.
fn refuse_foreign(space: &IpcSpace, contents: &Contents, refusals: &mut Refusals) {
    let counted = |id| {
        contents
            .segments
            .get(&(space.number, id))
            .map_or(0, |found| found.mappings)
    };
    for segment in &space.segments {
        let id = segment.permission.id;
        if segment.attached != counted(id) {
            refusals.add(
                None,
                title(space, id),
                "it is attached outside of the tree, or of another IPC namespace",
                "detach it (shmdt)",
            );
        }
    }
}

/// Who may have adjustments in a namespace: its processes, and such threads of others as have entered it.
struct Users<'a>(Vec<User<'a>>);

/// One of them.
struct User<'a> {
    process: &'a FoundProcess,
    name: NsPid,
    /// Those that have one list.
    threads: Vec<Pid>,
}

impl<'a> Users<'a> {
    fn of(tree: &'a FoundTree, processes: &[ProcessRecord], space: &IpcSpace) -> Self {
        let mut found = Vec::new();
        for process in tree.living() {
            let record = processes.iter().find(|record| record.pid.0 == process.ns_pid);
            let Some(record) = record else { continue };
            let mut inside = (record.threads.iter())
                .filter(|thread| thread.namespaces.ipc == space.number)
                .filter_map(|thread| Some((thread.tid, own_tid(process, thread.tid)?)))
                .peekable();
            if inside.peek().is_some_and(|(name, _)| *name == record.pid) {
                found.push(User {
                    process,
                    name: record.pid,
                    threads: inside.map(|(_, tid)| tid).collect(),
                });
            } else {
                found.extend(inside.map(|(name, tid)| User {
                    process,
                    name,
                    threads: vec![tid],
                }));
            }
        }
        Self(found)
    }
}

/// A thread, by its number in the image.
fn own_tid(process: &FoundProcess, name: NsPid) -> Option<Pid> {
    let found = process.threads.iter().find(|thread| thread.ns_tid == name.0);
    found.map(|thread| thread.tid)
}

/// What tasks have on their lists of adjustments (SEM_UNDO). Threads have one from the start, which is empty until
/// something is put on it; only the kernel's own memory tells what. Refused where that can't be read.
fn adjustments(
    users: &Users<'_>,
    sets: &[(Permission, Vec<u16>)],
    refusals: &mut Refusals,
) -> Result<Vec<AdjustmentRecord>, IpcError> {
    let bare = Bare::start().map_err(IpcError::Compare)?;
    let own = Pid::new(bare.0.as_raw());
    let mut with_list = Vec::new();
    for user in &users.0 {
        let has_list = |tid: &Pid| -> Result<bool, Errno> {
            let order = kcmp::compare(Resource::SemaphoreUndo, (own, 0), (*tid, 0))?;
            Ok(order != Ordering::Equal)
        };
        let threads: Result<Vec<bool>, Errno> = user.threads.iter().map(has_list).collect();
        if threads.map_err(IpcError::Compare)?.contains(&true) {
            with_list.push(user);
        }
    }
    if with_list.is_empty() {
        return Ok(Vec::new());
    }
    let sizes: HashMap<i32, usize> = sets.iter().map(|(found, values)| (found.id, values.len())).collect();
    let tasks: Vec<(Pid, &[Pid])> = (with_list.iter())
        .map(|user| (user.process.pid, user.threads.as_slice()))
        .collect();
    let found = match semaphore_adjustments(&tasks, &sizes) {
        Ok(found) => found,
        Err(error) => {
            for user in with_list {
                refusals.add(
                    Some(&user.process.subject()),
                    "semaphore adjustments (SEM_UNDO)",
                    format!("whether it has any can't be read from the kernel's memory: {error}"),
                    "run floe as root where bpf(2) may be used, or remove the semaphores with ipcrm",
                );
            }
            return Ok(Vec::new());
        }
    };
    let mut records = Vec::new();
    for (user, found) in with_list.iter().zip(found) {
        let some = found
            .into_iter()
            .filter(|(_, values)| values.iter().any(|value| *value != 0));
        records.extend(some.map(|(set, values)| AdjustmentRecord {
            task: user.name,
            set,
            values,
        }));
    }
    Ok(records)
}

/// A process without such a list, for comparison; floe itself has one, because it has had threads. It has ended, and is
/// reaped when it is no longer needed.
struct Bare(nix::unistd::Pid);

impl Bare {
    fn start() -> Result<Self, Errno> {
        fork::child(|| 0).map(Self)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        while let Err(Errno::EINTR) = waitpid(self.0, None) {}
    }
}
