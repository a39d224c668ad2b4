//! System V IPC objects: in an own namespace alone, sorted by identifiers and values the kernel knows.

use super::{ADDRESS_LIMIT, PAGE, ensure, memory::is_page_size};
use crate::{
    Image,
    record::{IpcPermission, NamespaceOrigin, ProcessRecord, ProcessState},
};

/// SEMVMX of linux/sem.h.
const HIGHEST_VALUE: u16 = 32_767;

/// An object that can't have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpcFault {
    /// An object outside of any namespace.
    #[error("there are System V IPC objects, but no namespace of their own")]
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
}

pub(super) fn check(image: &Image) -> Result<(), IpcFault> {
    let record = &image.sandbox().ipc_objects;
    let some = !record.segments.is_empty() || !record.semaphores.is_empty() || !record.queues.is_empty();
    ensure(!some || image.sandbox().ipc == NamespaceOrigin::Own, || {
        IpcFault::Namespace
    })?;
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
        let (pid, id) = (adjustment.pid, adjustment.set);
        let set = record.semaphores.iter().find(|set| set.permission.id == id);
        let is_it =
            |process: &ProcessRecord| process.pid == pid && !matches!(process.state, ProcessState::Zombie { .. });
        let living = image.processes().iter().any(is_it);
        let possible = adjustment.values.iter().all(|value| *value != i16::MIN);
        let fits = possible && set.is_some_and(|set| set.values.len() == adjustment.values.len());
        ensure(living && fits, || IpcFault::Object {
            what: "semaphore set",
            id,
            fault: "is adjusted by a process that is missing, or in another size",
        })?;
    }
    last = -1;
    for queue in &record.queues {
        let bad = permission("message queue", &queue.permission, &mut last)?;
        ensure(queue.messages.iter().all(|message| message.kind > 0), || {
            bad("has a message of an impossible type")
        })?;
    }
    Ok(())
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
