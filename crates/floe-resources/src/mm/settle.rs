//! What is done to a puppet's memory when nothing in it is mapped or moved any more: no seal can be taken back, and
//! children would inherit them; what is mapped behind mlockall(2) is locked.

use super::build::BuildError;
use floe_image::record::AddressSpaceRecord;
use floe_tracee::Script;

/// Linux 6.10; the same number on all architectures.
const SYS_MSEAL: i64 = 462;

/// Seals mappings, and locks those to come.
///
/// # Errors
/// [`BuildError`].
pub fn settle(script: &mut Script<'_>, wanted: &AddressSpaceRecord) -> Result<(), BuildError> {
    for vma in wanted.vmas.iter().filter(|vma| vma.flags.contains(b"sl")) {
        script.call("seal", SYS_MSEAL, &[vma.start, vma.end - vma.start, 0])?;
    }
    if wanted.lock_future != 0 {
        let flags = u64::from(wanted.lock_future);
        script.call("lock mappings to come", libc::SYS_mlockall, &[flags])?;
    }
    Ok(())
}
