//! The small init that can stand as PID 1: it reaps whatever is orphaned, hands signals on to the main process, and ends
//! with that one's status (128 + N for signal N).
//!
//! It is a page of machine code in a static ELF file that lives in memory alone, because it is part of the tree that is
//! saved, and must come back on a host with another build of floe.

use crate::arch;
use nix::{
    errno::Errno,
    sys::memfd::{MFdFlags, memfd_create},
};
use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsRawFd, OwnedFd},
};

/// Name of the process.
pub const NAME: &str = "floe-init";

/// The program: `floe-init PID`, to be executed by execveat(2). PID is the main process, a child of the caller.
///
/// # Errors
/// Those of memfd_create(2) and write(2).
pub fn program() -> io::Result<OwnedFd> {
    let fd = memfd_create(NAME, MFdFlags::MFD_CLOEXEC).map_err(|error: Errno| io::Error::from(error))?;
    let mut file = File::from(fd);
    file.write_all(&arch::init_program())?;
    // A program that is open for writing can't be executed.
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}
