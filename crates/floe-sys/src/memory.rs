//! Another process's memory: process_vm_readv(2), process_vm_writev(2) and /proc/PID/mem.

use crate::Pid;
use nix::errno::Errno;
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
};

/// A range of another process's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteRange {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub bytes: usize,
}

/// How many ranges one call takes (IOV_MAX).
pub const MAX_RANGES: usize = 1024;

fn vectors(ranges: &[RemoteRange]) -> Vec<libc::iovec> {
    ranges
        .iter()
        .map(|r| libc::iovec {
            iov_base: r.start as *mut libc::c_void,
            iov_len: r.bytes,
        })
        .collect()
}

/// Reads up to [`MAX_RANGES`] ranges, one behind the other, into `buffer`; returns the bytes read, which are fewer where
/// a page can't be read (PROT_NONE and unmapped ones).
///
/// # Errors
/// ESRCH, EPERM, EFAULT where not even the first byte can be read.
pub fn read_ranges(pid: Pid, ranges: &[RemoteRange], buffer: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let remote = vectors(ranges);
    // SAFETY: the only local range is `buffer`, borrowed mutably for the whole call; the remote ranges are not ours.
    let done =
        unsafe { libc::process_vm_readv(pid.raw(), &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0) };
    Errno::result(done).map(|n| n as usize)
}

/// Writes `bytes` over up to [`MAX_RANGES`] ranges, one behind the other; returns the bytes written. Fails on mappings
/// without PROT_WRITE: see [`MemoryFile`].
///
/// # Errors
/// ESRCH, EPERM, EFAULT.
pub fn write_ranges(pid: Pid, ranges: &[RemoteRange], bytes: &[u8]) -> Result<usize, Errno> {
    let local = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let remote = vectors(ranges);
    // SAFETY: the kernel only reads `bytes`, which is borrowed for the whole call; the remote ranges are not ours.
    let done =
        unsafe { libc::process_vm_writev(pid.raw(), &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0) };
    Errno::result(done).map(|n| n as usize)
}

/// Fills `buffer` from one address, whole or not at all.
///
/// # Errors
/// As [`read_ranges`]; EFAULT where only a part can be read.
pub fn read(pid: Pid, start: u64, buffer: &mut [u8]) -> Result<(), Errno> {
    let bytes = buffer.len();
    if bytes == 0 {
        return Ok(());
    }
    if read_ranges(pid, &[RemoteRange { start, bytes }], buffer)? < bytes {
        Err(Errno::EFAULT)
    } else {
        Ok(())
    }
}

/// Writes `bytes` to one address, whole or with an error.
///
/// # Errors
/// As [`write_ranges`]; EFAULT where only a part can be written.
pub fn write(pid: Pid, start: u64, bytes: &[u8]) -> Result<(), Errno> {
    if bytes.is_empty() {
        return Ok(());
    }
    let range = RemoteRange {
        start,
        bytes: bytes.len(),
    };
    if write_ranges(pid, &[range], bytes)? < bytes.len() {
        Err(Errno::EFAULT)
    } else {
        Ok(())
    }
}

/// /proc/PID/mem: reads every mapping and writes every private one, whatever its protection (ptrace access).
#[derive(Debug)]
pub struct MemoryFile(File);

impl MemoryFile {
    /// Opens it.
    ///
    /// # Errors
    /// Those of open(2); EACCES without ptrace access.
    pub fn open(pid: Pid) -> io::Result<Self> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .map(Self)
    }

    /// Fills `buffer` from `address`.
    ///
    /// # Errors
    /// EIO where nothing is mapped.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, address)
    }

    /// Writes `bytes` to `address`.
    ///
    /// # Errors
    /// EIO where nothing is mapped, or a shared mapping is not writable.
    pub fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, address)
    }
}

/// How many bytes describe the layout of an address space to the kernel (PR_SET_MM_MAP_SIZE), where it takes such a
/// description.
///
/// # Errors
/// EINVAL where it was built without CONFIG_CHECKPOINT_RESTORE.
pub fn layout_bytes() -> Result<u32, Errno> {
    let mut bytes = 0_u32;
    // SAFETY: the kernel writes a number to `bytes`.
    let result = unsafe {
        let room = &raw mut bytes;
        libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP_SIZE, room, 0, 0)
    };
    Errno::result(result).map(|_| bytes)
}

/// include/uapi/linux/magic.h, of statfs(2).
pub const HUGETLBFS: i64 = 0x9584_58f6;

/// The bits that choose a size of huge pages, for MAP_HUGETLB, MFD_HUGETLB and SHM_HUGETLB alike
/// (include/uapi/asm-generic/hugetlb_encode.h). `bytes` is a power of two.
#[must_use]
pub const fn huge_page_bits(bytes: u64) -> u32 {
    bytes.trailing_zeros() << 26
}
