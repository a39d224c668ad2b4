//! Attaches System V segments in a puppet. A segment can only be attached whole; where a part of it is wanted, it is
//! attached at a free place and the part moved. Each mapping counts as an attachment, so what is left must go again.

use super::build::BuildError;
use floe_image::record::VmaRecord;
use floe_tracee::Script;

/// One wanted mapping.
pub(super) struct Attach<'a> {
    pub vma: &'a VmaRecord,
    /// Identifier of the segment.
    pub id: i32,
    /// Byte offset in it.
    pub offset: u64,
    /// Whether it is not to be attached by SHM_RDONLY.
    pub writable: bool,
    /// Bytes of all pages of the segment.
    pub size: u64,
    /// A place where there is room for the whole of it.
    pub aside: u64,
}

impl Attach<'_> {
    /// Adds the calls to the script.
    pub fn run(&self, script: &mut Script<'_>) -> Result<(), BuildError> {
        let (start, bytes) = (self.vma.start, self.vma.end - self.vma.start);
        let whole = self.size;
        let direct = self.offset == 0 && bytes == whole;
        let at = if direct { start } else { self.aside };
        let flags = if self.writable { 0 } else { libc::SHM_RDONLY };
        script.call("attach", libc::SYS_shmat, &[self.id as u64, at, flags as u64])?;
        if !direct {
            let from = at + self.offset;
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            let arguments = [from, bytes, bytes, flags, start];
            script.call("move a part of a segment", libc::SYS_mremap, &arguments)?;
            script.call("detach the rest", libc::SYS_munmap, &[at, whole])?;
        }
        let given = if self.writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        if self.vma.prot != given as u32 {
            let arguments = [start, bytes, u64::from(self.vma.prot)];
            script.call("protect a segment", libc::SYS_mprotect, &arguments)?;
        }
        Ok(())
    }
}
