//! Whether the records of an image fit together: ids that are referred to exist, ranges are sorted and aligned, the
//! process tree is one. Restore relies on all of this. Linear in the records, so it is done whenever an image is opened.

mod cgroups;
mod content;
mod files;
mod ip_sets;
mod ipc;
mod machine;
mod memory;
mod mounts;
mod namespaces;
mod network;
mod packet_filter;
mod pids;
mod sysctl;
mod task;
mod time;
mod tree;

pub use cgroups::CgroupFault;
pub use content::ContentFault;
pub use files::FileFault;
pub use ipc::IpcFault;
pub use machine::MachineFault;
pub use memory::MemoryFault;
pub use mounts::MountFault;
pub use namespaces::NamespaceFault;
pub use network::NetworkFault;
pub use packet_filter::FilterFault;
pub use pids::PidFault;
pub use sysctl::SysctlFault;
pub use task::TaskFault;
pub use time::TimeFault;
pub use tree::TreeFault;

use crate::{
    Image,
    chunk::PAGE_BYTES,
    record::{IdentityRecord, OwnerRecord, ProcessState},
};
use std::collections::HashSet;

/// The end of user addresses on x86-64 with four levels of page tables.
const ADDRESS_LIMIT: u64 = 1 << 47;
const PAGE: u64 = PAGE_BYTES as u64;
/// Flags of clone(2), linux/sched.h.
const CLONE_VM: u32 = 0x100;
const CLONE_FS: u32 = 0x200;
const CLONE_FILES: u32 = 0x400;
const CLONE_SIGHAND: u32 = 0x800;
/// Longest path that the kernel gives or takes.
const PATH_BYTES: usize = 4096;
/// Longest name of a file (NAME_MAX).
const NAME_BYTES: usize = 255;

/// Records that do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// A record that every image has.
    #[error("it has no {0} record")]
    Missing(&'static str),
    /// A record that every image has once.
    #[error("it has more than one {0} record")]
    Repeated(&'static str),
    /// Pages of another machine.
    #[error("its pages have {0} bytes, not {PAGE_BYTES}")]
    PageSize(u32),
    /// The image that it is based on.
    #[error("the image that it is based on {0}")]
    Base(&'static str),
    /// Numbers that refer to records are positions in the lists of their kinds.
    #[error("{what} {id} stands at position {position}")]
    Number {
        /// The kind.
        what: &'static str,
        /// The number.
        id: u32,
        /// Where it stands.
        position: usize,
    },
    /// Processes.
    #[error(transparent)]
    Tree(#[from] TreeFault),
    /// PID namespaces.
    #[error(transparent)]
    Pid(#[from] PidFault),
    /// Other namespaces.
    #[error(transparent)]
    Namespace(#[from] NamespaceFault),
    /// Switches of tasks.
    #[error(transparent)]
    Task(#[from] TaskFault),
    /// Clocks and timers.
    #[error(transparent)]
    Time(#[from] TimeFault),
    /// System V IPC objects.
    #[error(transparent)]
    Ipc(#[from] IpcFault),
    /// Packet filters.
    #[error(transparent)]
    Filter(#[from] FilterFault),
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupFault),
    /// Settings of namespaces.
    #[error(transparent)]
    Sysctl(#[from] SysctlFault),
    /// Address spaces.
    #[error(transparent)]
    Memory(#[from] MemoryFault),
    /// Mounts.
    #[error(transparent)]
    Mount(#[from] MountFault),
    /// Networks.
    #[error(transparent)]
    Network(#[from] NetworkFault),
    /// Open files.
    #[error(transparent)]
    File(#[from] FileFault),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineFault),
    /// Page maps.
    #[error(transparent)]
    Content(#[from] ContentFault),
}

/// Checks everything; the error is the first finding.
pub(crate) fn check(image: &Image) -> Result<(), Contradiction> {
    let page_size = image.header().page_size;
    ensure(page_size == PAGE_BYTES as u32, || Contradiction::PageSize(page_size))?;
    identity(image.identity())?;
    numbers("mapped file", image.mapped_files().iter().map(|record| record.id))?;
    numbers("shared memory object", image.shmems().iter().map(|record| record.id))?;
    numbers("deleted file", image.ghosts().iter().map(|record| record.id))?;
    numbers("filesystem", image.filesystems().iter().map(|record| record.id))?;
    numbers("open file", image.open_files().iter().map(|record| record.id))?;
    tree::check(image)?;
    machine::check(image)?;
    pids::check(image)?;
    cgroups::check(image)?;
    namespaces::check(image)?;
    image.processes().iter().try_for_each(task::process)?;
    ipc::check(image)?;
    sysctl::check(image)?;
    packet_filter::check(image)?;
    time::check(image)?;
    mounts::check(image)?;
    network::check(image)?;
    memory::check(image, &owners(image, CLONE_VM))?;
    files::check(image, &owners(image, CLONE_FILES))?;
    content::check(image, &owners(image, CLONE_VM))?;
    Ok(())
}

/// Living processes that have one of their own of what `flag` shares.
fn owners(image: &Image, flag: u32) -> HashSet<i32> {
    let living = living(image);
    let processes = image.processes().iter();
    let owners = processes.filter(|p| p.shared & flag == 0 && living.contains(&p.pid.0));
    owners.map(|p| p.pid.0).collect()
}

fn living(image: &Image) -> HashSet<i32> {
    let alive = |state| !matches!(state, ProcessState::Zombie { .. });
    let processes = image.processes().iter();
    processes.filter(|p| alive(p.state)).map(|p| p.pid.0).collect()
}

fn ensure<E>(holds: bool, fault: impl FnOnce() -> E) -> Result<(), E> {
    if holds { Ok(()) } else { Err(fault()) }
}

fn numbers(what: &'static str, ids: impl Iterator<Item = u32>) -> Result<(), Contradiction> {
    for (position, id) in ids.enumerate() {
        ensure(id as usize == position, || Contradiction::Number { what, id, position })?;
    }
    Ok(())
}

pub(crate) fn identity(identity: &IdentityRecord) -> Result<(), Contradiction> {
    let Some(base) = &identity.base else { return Ok(()) };
    let name = base.name.as_slice();
    let plain = (1..=NAME_BYTES).contains(&name.len()) && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
    ensure(plain && !matches!(name, b"." | b".."), || {
        Contradiction::Base("has no name of a file")
    })?;
    ensure(base.id != identity.id, || Contradiction::Base("is itself"))
}

pub(crate) fn owner(owner: &OwnerRecord) -> Result<(), Contradiction> {
    Ok(namespaces::owner(owner)?)
}

/// Whether the bytes can be given to the kernel as a path.
fn is_path(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.len() < PATH_BYTES && !bytes.contains(&0)
}
