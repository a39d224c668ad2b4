//! Reads the objects of an IPC namespace.

use super::{IpcError, namespace};
use crate::{
    mm::{ContentPlace, ContentSource, Contents},
    ns::run_inside,
    refusal::Refusals,
    tree::{FoundProcess, FoundThread, FoundTree},
};
use floe_image::record::{
    AdjustmentRecord, ContentOwner, IpcPermission, IpcRecord, MessageRecord, NsPid, QueueRecord, SegmentRecord,
    SemaphoreSetRecord,
};
use floe_sys::{
    Pid, fork,
    kcmp::{self, Resource},
    kernel::semaphore_adjustments,
    sysv::{self, Attachment, Permission, Queue, SHM_DEST, SHM_LOCKED, Segment},
};
use nix::{errno::Errno, sched::CloneFlags, sys::wait::waitpid};
use std::{cmp::Ordering, collections::HashMap, io};

/// What is in the namespace, as it is read.
type Found = (
    Vec<Segment>,
    Vec<(Permission, Vec<u16>)>,
    Vec<(Queue, Vec<MessageRecord>)>,
);

/// The System V objects of the IPC namespace of `tree`, which is its own and whose mappings were looked at before. Contents of
/// segments are noted in `contents`.
///
/// # Errors
/// [`IpcError`].
pub fn dump(tree: &FoundTree, contents: &mut Contents, refusals: &mut Refusals) -> Result<IpcRecord, IpcError> {
    let Some(root) = tree.root() else {
        return Ok(IpcRecord::default());
    };
    let (mut segments, mut sets, mut queues) =
        run_inside(root.task(), CloneFlags::CLONE_NEWIPC, read).map_err(namespace("read System V IPC objects"))?;
    segments.sort_by_key(|segment| segment.permission.id);
    sets.sort_by_key(|(permission, _)| permission.id);
    queues.sort_by_key(|(queue, _)| queue.permission.id);
    let adjustments = if sets.is_empty() {
        Vec::new()
    } else {
        adjustments(tree, &sets, refusals)?
    };
    let mut records = Vec::with_capacity(segments.len());
    for segment in &segments {
        let huge_page = segment_content(root, segment, (contents, refusals))?;
        records.push(segment_record(segment, huge_page));
    }
    refuse_foreign(&segments, contents, refusals);
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
    Ok((sysv::segments()?, sysv::semaphore_sets()?, queues))
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
    root: &FoundProcess,
    segment: &Segment,
    (contents, refusals): (&mut Contents, &mut Refusals),
) -> Result<u64, IpcError> {
    let id = segment.permission.id;
    let link = match contents.segments.get(&id) {
        Some(found) => found.link.clone(),
        None if segment.attached > 0 => return Ok(0),
        None => {
            let attach = || Attachment::new(segment);
            let attachment = run_inside(root.task(), CloneFlags::CLONE_NEWIPC, attach)
                .map_err(namespace("attach System V shared memory"))?;
            let link = attachment.link();
            contents.attachments.push(attachment);
            link
        }
    };
    let huge_page = match contents.huge_page(&link) {
        Err(error) if error.source.kind() == io::ErrorKind::PermissionDenied => {
            refusals.add(
                Some(&root.subject()),
                format!("System V shared memory {id}"),
                "only the host's root may look at what is mapped and has no name",
                "ipcrm it, or run floe as root",
            );
            return Ok(0);
        }
        found => found?,
    };
    contents.sources.push(ContentSource {
        owner: ContentOwner::Segment(id),
        place: ContentPlace::Link(link.into()),
        size: segment.size,
    });
    Ok(huge_page)
}

fn title(id: i32) -> String {
    format!("System V shared memory {id}")
}

/// Mappings are known by identifiers, which other namespaces use too, and each mapping counts as an attachment: where
/// the kernel counts others than were found, somebody else has the segment attached or a task has a stranger's.
fn refuse_foreign(segments: &[Segment], contents: &Contents, refusals: &mut Refusals) {
    let mut refuse = |id| {
        refusals.add(
            None,
            title(id),
            "it is attached outside of the tree, or of another IPC namespace",
            "detach it (shmdt)",
        );
    };
    let counted = |id| contents.segments.get(&id).map_or(0, |found| found.mappings);
    for segment in segments {
        if segment.attached != counted(segment.permission.id) {
            refuse(segment.permission.id);
        }
    }
    for id in contents.segments.keys() {
        if !segments.iter().any(|segment| segment.permission.id == *id) {
            refuse(*id);
        }
    }
}

/// What processes have on their lists of adjustments (SEM_UNDO). Threads have one from the start, which is empty until
/// something is put on it; only the kernel's own memory tells what. Refused where that can't be read.
fn adjustments(
    tree: &FoundTree,
    sets: &[(Permission, Vec<u16>)],
    refusals: &mut Refusals,
) -> Result<Vec<AdjustmentRecord>, IpcError> {
    let bare = Bare::start().map_err(IpcError::Compare)?;
    let own = Pid::new(bare.0.as_raw());
    let mut with_list = Vec::new();
    for process in tree.living() {
        let has_list = |thread: &FoundThread| -> Result<bool, Errno> {
            let order = kcmp::compare(Resource::SemaphoreUndo, (own, 0), (thread.tid, 0))?;
            Ok(order != Ordering::Equal)
        };
        let threads: Result<Vec<bool>, Errno> = process.threads.iter().map(has_list).collect();
        if threads.map_err(IpcError::Compare)?.contains(&true) {
            with_list.push(process);
        }
    }
    if with_list.is_empty() {
        return Ok(Vec::new());
    }
    let sizes: HashMap<i32, usize> = sets.iter().map(|(found, values)| (found.id, values.len())).collect();
    let pids: Vec<Pid> = with_list.iter().map(|process| process.pid).collect();
    let found = match semaphore_adjustments(&pids, &sizes) {
        Ok(found) => found,
        Err(error) => {
            for process in with_list {
                refusals.add(
                    Some(&process.subject()),
                    "semaphore adjustments (SEM_UNDO)",
                    format!("whether it has any can't be read from the kernel's memory: {error}"),
                    "run floe as root where bpf(2) may be used, or remove the semaphores with ipcrm",
                );
            }
            return Ok(Vec::new());
        }
    };
    let mut records = Vec::new();
    for (process, found) in with_list.iter().zip(found) {
        let some = found
            .into_iter()
            .filter(|(_, values)| values.iter().any(|value| *value != 0));
        records.extend(some.map(|(set, values)| AdjustmentRecord {
            pid: NsPid(process.ns_pid),
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
