//! What differs between architectures: the machine code of the small init.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::init_code;
