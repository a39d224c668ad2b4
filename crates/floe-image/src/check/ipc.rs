//! IPC objects: in namespaces of the tree's own alone, known by identifiers or names, of values that the kernel knows.

use super::{ADDRESS_LIMIT, PAGE, ensure, memory::is_page_size};
use crate::{
    Image,
    record::{
        IpcPermission, IpcRecord, NamespaceOrigin, NoticeRecord, NsPid, PosixMessageRecord, PosixQueueRecord,
        ProcessRecord, ProcessState,
    },
};

/// SEMVMX of linux/sem.h.
const HIGHEST_VALUE: u16 = 32_767;

/// An object that can't have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpcFault {
    /// An object outside of any namespace.
    #[error("there are IPC objects, but no namespace of their own")]
    Namespace,
    /// One that no kernel makes.
    #[error("System V {what} {id} {fault}")]
    Object {
        /// The kind.
        what: &'static str,
        /// Its identifier.
        id: i32,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A POSIX message queue that can't be.
    #[error("POSIX message queue {index} {fault}")]
    Queue {
        /// Its place.
        index: usize,
        /// What is wrong with it.
        fault: &'static str,
    },
}

pub(super) fn check(image: &Image) -> Result<(), IpcFault> {
    let sandbox = image.sandbox();
    ensure(
        sandbox.ipc_objects == IpcRecord::default() || sandbox.ipc == NamespaceOrigin::Own,
        || IpcFault::Namespace,
    )?;
    let mut all = sandbox.ipc_namespaces();
    all.try_for_each(|(number, record)| objects(image, number, record))
}

/// What is in one namespace.
fn objects(image: &Image, number: u32, record: &IpcRecord) -> Result<(), IpcFault> {
    let mut last = -1;
    for segment in &record.segments {
        let bad = permission("shared memory", &segment.permission, &mut last)?;
        let huge = segment.huge_page;
        ensure(huge == 0 || is_page_size(huge), || bad("can't be of huge pages"))?;
        // So that it can be rounded up to pages.
        let most = ADDRESS_LIMIT - huge.max(PAGE);
        ensure((1..=most).contains(&segment.size), || bad("has an impossible size"))?;
    }
    last = -1;
    for set in &record.semaphores {
        let bad = permission("semaphore set", &set.permission, &mut last)?;
        ensure(!set.values.is_empty(), || bad("has no semaphores"))?;
        ensure(set.values.iter().all(|value| *value <= HIGHEST_VALUE), || {
            bad("has an impossible value")
        })?;
    }
    for adjustment in &record.adjustments {
        let (task, id) = (adjustment.task, adjustment.set);
        let set = record.semaphores.iter().find(|set| set.permission.id == id);
        let possible = adjustment.values.iter().all(|value| *value != i16::MIN);
        let fits = possible && set.is_some_and(|set| set.values.len() == adjustment.values.len());
        ensure(adjusts(image, task, number) && fits, || IpcFault::Object {
            what: "semaphore set",
            id,
            fault: "is adjusted by a task that is missing or elsewhere, or in another size",
        })?;
    }
    last = -1;
    for queue in &record.queues {
        let bad = permission("message queue", &queue.permission, &mut last)?;
        ensure(queue.messages.iter().all(|message| message.kind > 0), || {
            bad("has a message of an impossible type")
        })?;
    }
    for (index, queue) in record.posix.iter().enumerate() {
        let fault = posix_fault(image, queue).or_else(|| {
            let mut before = record.posix[..index].iter().filter(|other| !other.unlinked);
            let taken = !queue.unlinked && before.any(|other| other.name == queue.name);
            taken.then_some("has the name of another one")
        });
        ensure(fault.is_none(), || IpcFault::Queue {
            index,
            fault: fault.unwrap_or_default(),
        })?;
    }
    Ok(())
}

/// Whether a task may have adjustments in an IPC namespace: that which it is in, and in which only its process has some.
fn adjusts(image: &Image, task: NsPid, namespace: u32) -> bool {
    image.processes().iter().any(|process| {
        let leader = process.threads.first().map(|leader| leader.namespaces.ipc);
        let own = process.threads.iter().find(|thread| thread.tid == task);
        own.is_some_and(|own| {
            let is_of_process = leader == Some(namespace);
            own.namespaces.ipc == namespace && is_of_process == (task == process.pid)
        })
    })
}

fn lives(image: &Image, pid: NsPid) -> bool {
    let is_it = |process: &ProcessRecord| process.pid == pid && !matches!(process.state, ProcessState::Zombie { .. });
    image.processes().iter().any(is_it)
}

/// What is wrong with a POSIX message queue.
fn posix_fault(image: &Image, queue: &PosixQueueRecord) -> Option<&'static str> {
    /// HARD_MSGMAX, HARD_MSGSIZEMAX of linux/ipc_namespace.h; MQ_PRIO_MAX of linux/mqueue.h.
    const MOST: (u32, u32, u32) = (65_536, 16 << 20, 32_768);
    let name = queue.name.as_slice();
    let named = (1..=255).contains(&name.len()) && name != b"." && name != b"..";
    if !named || name.contains(&b'/') || name.contains(&0) {
        return Some("has an impossible name");
    }
    let sized = (1..=MOST.0).contains(&queue.most_messages) && (1..=MOST.1).contains(&queue.message_bytes);
    if !sized || queue.messages.len() > queue.most_messages as usize || queue.mode & !0o7777 != 0 {
        return Some("has an impossible size or mode");
    }
    let fits =
        |message: &PosixMessageRecord| message.priority < MOST.2 && message.text.len() <= queue.message_bytes as usize;
    if !queue.messages.iter().all(fits) {
        return Some("has a message that does not fit");
    }
    let told = |notice: &NoticeRecord| {
        lives(image, notice.pid) && notice.signal.is_none_or(|signal| (1..=64).contains(&signal))
    };
    (!queue.notice.as_ref().is_none_or(told)).then_some("tells a process that is missing, or by no signal")
}

/// Checks what all objects have; returns what makes a fault of this one.
fn permission(
    what: &'static str,
    found: &IpcPermission,
    last: &mut i32,
) -> Result<impl Fn(&'static str) -> IpcFault, IpcFault> {
    let id = found.id;
    let bad = move |fault| IpcFault::Object { what, id, fault };
    ensure(id > *last, || bad("is there twice, or out of order"))?;
    *last = id;
    ensure(found.mode & !0o777 == 0, || bad("has impossible permissions"))?;
    Ok(bad)
}
