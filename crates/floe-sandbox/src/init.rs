//! The small init that can stand as PID 1: it reaps whatever is orphaned, hands signals on to the main process, and ends
//! with that one's status (128 + N for signal N).
//!
//! It is a page of machine code in a static ELF file that lives in memory alone, because it is part of the tree that is
//! saved, and must come back on a host with another build of floe.

use crate::arch;
use floe_sys::elf::one_page_program;
use std::{io, os::fd::OwnedFd};

/// Name of the process.
pub const NAME: &str = "floe-init";

const BASE: u64 = 0x40_0000;

/// The program: `floe-init PID`, to be executed by execveat(2). PID is the main process, a child of the caller.
///
/// # Errors
/// Those of memfd_create(2) and write(2).
pub fn program() -> io::Result<OwnedFd> {
    one_page_program(NAME, BASE, arch::init_code())
}
