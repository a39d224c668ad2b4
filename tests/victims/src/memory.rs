//! A mapping at a fixed address, read and written through raw pointers because others may write it too.

use crate::{Findings, pattern};
use std::{io, os::fd::RawFd, ptr};

/// Size of a page.
pub const PAGE: usize = 4096;

/// A mapping that stays until the victim ends.
#[derive(Debug, Clone, Copy)]
pub struct Mapping {
    /// Its address.
    pub address: usize,
    /// Its size in bytes.
    pub len: usize,
}

impl Mapping {
    /// An anonymous mapping.
    #[must_use]
    pub fn anonymous(len: usize, protection: i32, flags: i32) -> Self {
        Self::new(len, protection, flags | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// A private, anonymous, writable mapping.
    #[must_use]
    pub fn private(len: usize) -> Self {
        Self::anonymous(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)
    }

    /// Any mapping.
    #[must_use]
    pub fn new(len: usize, protection: i32, flags: i32, fd: RawFd, offset: i64) -> Self {
        // SAFETY: the kernel chooses the address, so no mapping is replaced.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, offset) };
        assert!(address != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        Self {
            address: address as usize,
            len,
        }
    }

    /// The bytes from `offset`.
    #[must_use]
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset + len <= self.len, "a read within the mapping");
        let mut bytes = vec![0; len];
        // SAFETY: the range lies in this mapping; the victim calls it for readable pages.
        unsafe { ptr::copy((self.address + offset) as *const u8, bytes.as_mut_ptr(), len) };
        bytes
    }

    /// Writes bytes at `offset`.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len, "a write within the mapping");
        // SAFETY: the range lies in this mapping; the victim calls it for writable pages.
        unsafe { ptr::copy(bytes.as_ptr(), (self.address + offset) as *mut u8, bytes.len()) };
    }

    /// Writes the pattern of `seed` into page `page`.
    pub fn mark(&self, page: usize, seed: u64) {
        self.write(page * PAGE, &pattern::bytes(PAGE, seed));
    }

    /// Compares page `page` with the pattern of `seed`.
    pub fn compare(&self, findings: &mut Findings, what: &str, page: usize, seed: u64) {
        if let Some(at) = pattern::difference(&self.read(page * PAGE, PAGE), &pattern::bytes(PAGE, seed)) {
            findings.add(format!("{what}: page {page} differs at byte {at}"));
        }
    }

    /// Notes it if page `page` is not all zeros.
    pub fn compare_zero(&self, findings: &mut Findings, what: &str, page: usize) {
        findings.that(
            self.read(page * PAGE, PAGE) == [0; PAGE],
            format!("{what}: page {page} is not zero"),
        );
    }

    /// Changes the protection of `pages` pages from `page`.
    pub fn protect(&self, page: usize, pages: usize, protection: i32) {
        let address = (self.address + page * PAGE) as *mut libc::c_void;
        // SAFETY: a range of this mapping, of which no reference is held.
        let status = unsafe { libc::mprotect(address, pages * PAGE, protection) };
        assert!(status == 0, "mprotect: {}", io::Error::last_os_error());
    }

    /// Unmaps `pages` pages from `page`.
    pub fn unmap(&self, page: usize, pages: usize) {
        let address = (self.address + page * PAGE) as *mut libc::c_void;
        // SAFETY: a range of this mapping, of which no reference is held.
        let status = unsafe { libc::munmap(address, pages * PAGE) };
        assert!(status == 0, "munmap: {}", io::Error::last_os_error());
    }

    /// Gives advice for `pages` pages from `page`.
    pub fn advise(&self, page: usize, pages: usize, advice: i32) -> io::Result<()> {
        let address = (self.address + page * PAGE) as *mut libc::c_void;
        // SAFETY: a range of this mapping, of which no reference is held.
        crate::call::checked(unsafe { libc::madvise(address, pages * PAGE, advice) }.into()).map(drop)
    }
}

/// What a line of /proc/self/smaps says of the mapping at `address`; empty where there is no such line.
#[must_use]
pub fn told(address: usize, key: &str) -> String {
    let text = std::fs::read_to_string("/proc/self/smaps").expect("/proc/self/smaps");
    let mut inside = false;
    for line in text.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let number = |digits| usize::from_str_radix(digits, 16).ok();
        if let Some((start, end)) = range.and_then(|(a, b)| Some((number(a)?, number(b)?))) {
            inside = start <= address && address < end;
        } else if let Some((_, value)) = line.split_once(':').filter(|(name, _)| inside && *name == key) {
            return value.trim().to_owned();
        }
    }
    String::new()
}

/// The same of a line that tells an amount, in KiB.
///
/// # Panics
/// Where there is no such line.
#[must_use]
pub fn kib_at(address: usize, key: &str) -> usize {
    let value = told(address, key);
    value.trim_end_matches(" kB").parse().expect("a number of KiB")
}

/// The words of `VmFlags:` of the mapping at `address`.
#[must_use]
pub fn flags_at(address: usize) -> Vec<String> {
    told(address, "VmFlags")
        .split_ascii_whitespace()
        .map(str::to_owned)
        .collect()
}

/// Those of them that say how the mapping is locked.
#[must_use]
pub fn locks_at(address: usize) -> Vec<String> {
    let mut flags = flags_at(address);
    flags.retain(|flag| flag == "lo" || flag == "lf");
    flags
}
