//! The smallest programs there are: one page with a bit of machine code, as an ELF file in memory, elf(5).
//!
//! ```text
//! 0 ELF header   64 PT_LOAD: the whole page, readable and executable   120 PT_GNU_STACK: not executable   512 code
//! ```

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

const PAGE: usize = 4096;
const HEADER_BYTES: u16 = 64;
const SEGMENT_BYTES: u16 = 56;
/// Where the code stands in the page.
pub const CODE_OFFSET: u64 = 512;

/// The program's file: `code` at `base` + [`CODE_OFFSET`], where it is entered. `base` is a multiple of 4096.
///
/// # Errors
/// Those of memfd_create(2) and write(2); `InvalidInput` for code that does not fit into the page.
pub fn one_page_program(name: &str, base: u64, code: &[u8]) -> io::Result<OwnedFd> {
    let page = one_page(base, code).ok_or(io::ErrorKind::InvalidInput)?;
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC).map_err(|error: Errno| io::Error::from(error))?;
    let mut file = File::from(fd);
    file.write_all(&page)?;
    // A program that is open for writing can't be executed.
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}

/// A program that waits until its standard input ends, and exits. It closes its standard output first, by which is seen that it
/// runs: what an exec closes is closed before the kernel lets anybody look into who executed it (`begin_new_exec` of fs/exec.c).
///
/// # Errors
/// As for [`one_page_program`].
pub fn waiting_program(name: &str) -> io::Result<OwnedFd> {
    const BASE: u64 = 0x40_0000;
    one_page_program(name, BASE, arch::WAIT_FOR_END)
}

fn one_page(base: u64, code: &[u8]) -> Option<Vec<u8>> {
    const EXECUTABLE: u16 = 2;
    const LOAD: u32 = 1;
    const GNU_STACK: u32 = 0x6474_e551;
    const READ_EXECUTE: u32 = 5;
    const READ_WRITE: u32 = 6;
    let mut page = vec![0; PAGE];
    page.get_mut(CODE_OFFSET as usize..)?
        .get_mut(..code.len())?
        .copy_from_slice(code);
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    // 64-bit, little-endian, version 1.
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &EXECUTABLE.to_le_bytes());
    put(18, &arch::ELF_MACHINE.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(24, &(base + CODE_OFFSET).to_le_bytes());
    put(32, &u64::from(HEADER_BYTES).to_le_bytes());
    put(52, &HEADER_BYTES.to_le_bytes());
    put(54, &SEGMENT_BYTES.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    let segment = usize::from(HEADER_BYTES);
    put(segment, &LOAD.to_le_bytes());
    put(segment + 4, &READ_EXECUTE.to_le_bytes());
    put(segment + 16, &base.to_le_bytes());
    put(segment + 24, &base.to_le_bytes());
    for field in [32, 40, 48] {
        put(segment + field, &(PAGE as u64).to_le_bytes());
    }
    let stack = segment + usize::from(SEGMENT_BYTES);
    put(stack, &GNU_STACK.to_le_bytes());
    put(stack + 4, &READ_WRITE.to_le_bytes());
    Some(page)
}

#[cfg(test)]
mod tests {
    use super::one_page;

    #[test]
    fn code_must_fit() {
        let page = one_page(0x1_0000, &[0x90; 3584]).expect("just fits");
        assert_eq!((&page[..4], page[511], page[512]), (&b"\x7fELF"[..], 0, 0x90));
        assert_eq!(one_page(0x1_0000, &[0x90; 3585]), None);
    }
}
