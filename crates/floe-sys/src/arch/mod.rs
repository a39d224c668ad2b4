//! What of the kernel's numbers differs between architectures.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::{ELF_MACHINE, O_LARGEFILE, WAIT_FOR_END, processor};
