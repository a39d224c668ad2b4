//! Whether the records of an image fit together: ids that are referred to exist, ranges are sorted and aligned, the
//! process tree is one. Restore relies on all of this. Linear in the records, so it is done whenever an image is opened.

mod content;
mod files;
mod ipc;
mod memory;
mod tree;

pub use content::ContentFault;
pub use files::FileFault;
pub use ipc::IpcFault;
pub use memory::MemoryFault;
pub use tree::TreeFault;

use crate::{Image, chunk::PAGE_BYTES, record::ProcessState};
use std::collections::HashSet;

/// The end of user addresses on x86-64 with four levels of page tables.
const ADDRESS_LIMIT: u64 = 1 << 47;
const PAGE: u64 = PAGE_BYTES as u64;
/// Longest path that the kernel gives or takes.
const PATH_BYTES: usize = 4096;

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
    /// System V IPC objects.
    #[error(transparent)]
    Ipc(#[from] IpcFault),
    /// Address spaces.
    #[error(transparent)]
    Memory(#[from] MemoryFault),
    /// Open files.
    #[error(transparent)]
    File(#[from] FileFault),
    /// Page maps.
    #[error(transparent)]
    Content(#[from] ContentFault),
}

/// Checks everything; the error is the first finding.
pub(crate) fn check(image: &Image) -> Result<(), Contradiction> {
    let page_size = image.header().page_size;
    ensure(page_size == PAGE_BYTES as u32, || Contradiction::PageSize(page_size))?;
    numbers("mapped file", image.mapped_files().iter().map(|record| record.id))?;
    numbers("shared memory object", image.shmems().iter().map(|record| record.id))?;
    numbers("deleted file", image.ghosts().iter().map(|record| record.id))?;
    numbers("open file", image.open_files().iter().map(|record| record.id))?;
    tree::check(image)?;
    ipc::check(image)?;
    let living = living(image);
    memory::check(image, &living)?;
    files::check(image, &living)?;
    content::check(image, &living)?;
    Ok(())
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

/// Whether the bytes can be given to the kernel as a path.
fn is_path(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.len() < PATH_BYTES && !bytes.contains(&0)
}
