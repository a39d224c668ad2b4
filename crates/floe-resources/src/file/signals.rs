//! Who gets signals about a file, and which: F_SETOWN_EX, F_SETSIG and O_ASYNC of fcntl(2).
//!
//! They are set again by a task that has the file: with a signal goes the number by which O_ASYNC was set, and whom the
//! owner may signal depends on who made it one.

use super::{DumpContext, FileError, FoundFile, Holders, notices};
use floe_image::record::{FileSignals, NsPid, OpenFileRecord, SignalOwner, SignalTarget};
use floe_sys::{
    Pid,
    descriptor::{self, OwnerKind},
};
use floe_tracee::{Batch, Script};
use nix::fcntl::{FcntlArg, fcntl};
use std::os::fd::AsFd;

/// include/uapi/asm-generic/fcntl.h.
const F_SETSIG: u64 = 10;
const F_SETOWN_EX: u64 = 15;

/// What is set for a file. An owner that can't be named is refused; that is the outer `None`.
pub(super) fn read(found: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Option<FileSignals>>, FileError> {
    if found.is_path_only() {
        return Ok(Some(None));
    }
    let seen = descriptor::signals(found.as_fd()).map_err(FileError::system("read the owner of", found.title()))?;
    if let Some(reason) = notices::obstacle(found, &context.memory) {
        let object = found.title();
        context.refusals.add(Some(&found.subject), object, reason, "reset it");
        return Ok(None);
    }
    let Some((kind, id)) = seen.owner else {
        let some = seen.signal != 0;
        return Ok(Some(some.then_some(FileSignals {
            owner: None,
            signal: seen.signal,
        })));
    };
    let host = Pid::new(id);
    let (target, inside) = match kind {
        OwnerKind::Thread => (SignalTarget::Thread, context.tasks.get(&host)),
        OwnerKind::Process => (SignalTarget::Process, context.processes.get(&host)),
        OwnerKind::Group => (SignalTarget::Group, context.groups.get(&host)),
    };
    let Some(inside) = inside.copied() else {
        let reason = "its owner (F_SETOWN) is not in the tree";
        context
            .refusals
            .add(Some(&found.subject), found.title(), reason, "reset it");
        return Ok(None);
    };
    Ok(Some(Some(FileSignals {
        owner: Some(SignalOwner {
            target,
            id: NsPid(inside),
            users: seen.users,
        }),
        signal: seen.signal,
    })))
}

/// Sets all of it again.
///
/// # Errors
/// [`FileError`].
pub fn set_all<'a>(
    files: impl IntoIterator<Item = &'a OpenFileRecord>,
    holders: &Holders<'_>,
) -> Result<(), FileError> {
    let is_async = |record: &OpenFileRecord| record.flags & libc::O_ASYNC as u32 != 0;
    for record in files
        .into_iter()
        .filter(|record| record.signals.is_some() || is_async(record))
    {
        let Some(first) = holders.first(record.id) else {
            continue;
        };
        let owner = record.signals.as_ref().and_then(|signals| signals.owner.as_ref());
        let ((pid, number), called) = match owner {
            Some(owner) => holders
                .who_sees(record.id, owner.id.0)
                .ok_or_else(|| FileError::Unknown {
                    id: record.id,
                    what: format!("nobody who has it sees its owner, {}", owner.id),
                })?,
            None => (first, 0),
        };
        let mut script = Script::new(holders.puppet(pid)?);
        let batch = script.reserve(6, 64)?;
        if let Some(signals) = &record.signals {
            set(batch, number as u64, (signals, called));
        }
        if is_async(record) {
            let file = holders.fetch((pid, number))?;
            let read = FileError::system("read the flags of", format!("open file {}", record.id));
            let flags = fcntl(&file, FcntlArg::F_GETFL).map_err(read)? | libc::O_ASYNC;
            let arguments = [number as u64, libc::F_SETFL as u64, flags as u64];
            batch.call("have signals sent about a file", libc::SYS_fcntl, &arguments);
        }
        script.run()?;
    }
    Ok(())
}

fn set(batch: &mut Batch, number: u64, (signals, called): (&FileSignals, i32)) {
    if signals.signal != 0 {
        let arguments = [number, F_SETSIG, signals.signal as u64];
        batch.call("choose the signal about a file", libc::SYS_fcntl, &arguments);
    }
    let Some(owner) = &signals.owner else { return };
    let kind = match owner.target {
        SignalTarget::Thread => OwnerKind::Thread,
        SignalTarget::Process => OwnerKind::Process,
        SignalTarget::Group => OwnerKind::Group,
    };
    // struct f_owner_ex.
    let mut bytes = (kind as i32).to_ne_bytes().to_vec();
    bytes.extend(called.to_ne_bytes());
    let place = batch.data(&bytes);
    const KEEP: u64 = u32::MAX as u64;
    let become_user = |batch: &mut Batch, [real, effective]: [u32; 2]| {
        let arguments = [u64::from(real), u64::from(effective), KEEP];
        batch.call("take the users of who set it", libc::SYS_setresuid, &arguments);
    };
    // Tasks are who floe is, until all else is done.
    let own = [nix::unistd::geteuid().as_raw(); 2];
    if owner.users != own {
        become_user(batch, owner.users);
    }
    batch.call(
        "set the owner of a file",
        libc::SYS_fcntl,
        &[number, F_SETOWN_EX, place],
    );
    if owner.users != own {
        become_user(batch, own);
    }
}
