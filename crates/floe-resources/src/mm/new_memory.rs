//! Fills memory that was just mapped. Through process_vm_writev(2) the kernel has each page fault in, clears it, and writes it
//! then; through userfaultfd(2) it puts pages there that have their content already, which takes three fifths of the time.

use super::{
    FillError, Filler,
    fill::Target,
    lazy::can_be_looked_after,
    runs::{in_range, without},
};
use floe_image::record::{PageRun, VmaRecord};
use floe_sys::{
    Pid, descriptor,
    memory::RemoteRange,
    pager::{Pager, Purpose},
};
use floe_tracee::{Puppet, PuppetError};
use nix::errno::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// With fewer pages it is not worth it.
const FEWEST: u64 = 256;

/// A userfaultfd that could not be had of a process.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It may not open one.
    #[error("open a userfaultfd")]
    Puppet(#[from] PuppetError),
    /// It could not be taken from it.
    #[error("{0}")]
    System(&'static str, #[source] Errno),
}

/// Has a puppet open a userfaultfd, and takes that from it.
pub(super) fn open(puppet: &Puppet, purpose: Purpose) -> Result<Pager, OpenError> {
    let system = |what| move |error| OpenError::System(what, error);
    let mut batch = puppet.batch();
    let opened = batch.call("open a userfaultfd", libc::SYS_userfaultfd, &[purpose.flags()]);
    puppet.run(&mut batch)?;
    let number = batch.result(opened);
    let pidfd = descriptor::pidfd_open(puppet.tid()).map_err(system("open a pidfd"))?;
    let file = descriptor::pidfd_getfd(pidfd.as_fd(), number as i32).map_err(system("fetch a userfaultfd"));
    let mut batch = puppet.batch();
    batch.call("close the userfaultfd", libc::SYS_close, &[number as u64]);
    puppet.run(&mut batch)?;
    let file: OwnedFd = file?;
    Pager::agree(file, purpose).map_err(system("agree on a userfaultfd"))
}

/// Fills what of `runs` lies in these mappings, in which nothing is yet, where that is worth it and the kernel lets floe. Returns
/// the others.
pub(super) fn fill_new<'a>(
    puppet: &Puppet,
    new: impl Iterator<Item = &'a VmaRecord>,
    runs: Vec<PageRun>,
    filler: &Filler<'_>,
) -> Result<Vec<PageRun>, FillError> {
    // One call fills within one mapping.
    let parts: Vec<(&VmaRecord, Vec<PageRun>)> = new
        .filter(|vma| can_be_looked_after(vma))
        .map(|vma| (vma, in_range(&runs, vma.start..vma.end).collect::<Vec<_>>()))
        .filter(|(_, inside)| !inside.is_empty())
        .collect();
    let pages: u64 = parts.iter().flat_map(|(_, inside)| inside).map(|run| run.pages).sum();
    if pages < FEWEST {
        return Ok(runs);
    }
    let pager = match open(puppet, Purpose::Fill) {
        Ok(pager) => pager,
        Err(error) => {
            tracing::debug!(%error, "new memory is filled as any other");
            return Ok(runs);
        }
    };
    let mut all = Vec::new();
    for (vma, inside) in parts {
        match pager.register(&(vma.start..vma.end)) {
            Ok(()) => all.extend(inside),
            Err(error) => tracing::debug!(%error, start = vma.start, "a new mapping is filled as any other"),
        }
    }
    all.sort_unstable_by_key(|run| run.start);
    let pid = puppet.tid();
    filler.to(&Missing { pid, pager }, &all)?;
    Ok(without(&runs, &all))
}

/// Memory in which nothing is yet.
struct Missing {
    pid: Pid,
    pager: Pager,
}

impl Target for Missing {
    fn same_way(&self, _: u64, _: u64) -> bool {
        true
    }

    fn scatter(&self, places: &[RemoteRange], bytes: &[u8]) -> Result<(), FillError> {
        let mut at = 0;
        for place in places {
            let content = &bytes[at..at + place.bytes];
            self.pager
                .copy(place.start, content)
                .map_err(|partly| FillError::Write {
                    pid: self.pid,
                    address: place.start + partly.done as u64,
                    source: partly.why.into(),
                })?;
            at += place.bytes;
        }
        Ok(())
    }
}
