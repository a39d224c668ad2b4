//! Directories that tell a process of what happens in them: F_NOTIFY of fcntl(2). The kernel keeps it by process and open
//! file, and tells it nowhere but in its own memory.
//!
//! It counts only while the file has somebody who gets signals, so others are not asked for it.

use super::{FileError, FoundFile, Holders, memory::Memory};
use floe_image::record::{DescriptorTableRecord, DirectoryNotice};
use floe_sys::{Pid, descriptor};
use floe_tracee::Script;
use std::os::fd::AsFd;

/// include/uapi/linux/fcntl.h.
const F_NOTIFY: u64 = 1026;

/// Why what was asked for can't be told; `None` where it can.
pub(super) fn obstacle(found: &FoundFile, memory: &Memory) -> Option<String> {
    let asked = may_have_been_asked(found).then(|| memory.directory_notices(found.as_fd(), &[]));
    let error = asked?.err()?;
    Some(format!(
        "what F_NOTIFY was told can't be read from the kernel's memory by floe: {error}"
    ))
}

/// What a process asked for by the number at which `found` was found.
///
/// # Errors
/// [`FileError`].
pub(super) fn asked_by(process: Pid, found: &FoundFile, memory: &Memory) -> Result<Option<DirectoryNotice>, FileError> {
    if !may_have_been_asked(found) {
        return Ok(None);
    }
    let all = memory
        .directory_notices(found.as_fd(), &[process])
        .map_err(|source| FileError::System {
            action: "look for what F_NOTIFY was told of",
            object: found.title(),
            source,
        })?;
    let own = |notice: &floe_sys::kernel::DirectoryNotice| {
        notice.number == found.number && notice.processes.contains(&process)
    };
    Ok(all.into_iter().find(own).map(|notice| DirectoryNotice {
        number: notice.number,
        events: notice.events,
    }))
}

/// F_NOTIFY gives a file an owner.
fn may_have_been_asked(found: &FoundFile) -> bool {
    let has_owner = || descriptor::signals(found.as_fd()).is_ok_and(|signals| signals.owner.is_some());
    found.metadata.is_dir() && !found.is_path_only() && has_owner()
}

/// Asks for it again. The owners of the files are set later.
///
/// # Errors
/// [`FileError`].
pub fn ask_all(tables: &[DescriptorTableRecord], holders: &Holders<'_>) -> Result<(), FileError> {
    for table in tables.iter().filter(|table| !table.notices.is_empty()) {
        let mut script = Script::new(holders.puppet(table.pid.0)?);
        for notice in &table.notices {
            let number = notice.number as u64;
            let arguments = [number, F_NOTIFY, u64::from(notice.events)];
            script.call("have a directory tell of what happens", libc::SYS_fcntl, &arguments)?;
            let nobody = [number, libc::F_SETOWN as u64, 0];
            script.call("reset the owner of a file", libc::SYS_fcntl, &nobody)?;
        }
        script.run()?;
    }
    Ok(())
}
