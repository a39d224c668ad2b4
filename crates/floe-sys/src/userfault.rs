//! Following what is written to memory: userfaultfd(2), linux/userfaultfd.h.
//!
//! Asynchronous write protection (Linux 6.7): a page that is written loses its mark by itself, and nobody waits for whoever
//! follows. Marks are set and read by PAGEMAP_SCAN, see [`Pagemap::protect_written`](crate::pagemap::Pagemap).

use crate::descriptor::owned;
use nix::errno::Errno;
use std::{
    mem::size_of,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}
const _: () = assert!(size_of::<Api>() == 24);

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}
const _: () = assert!(size_of::<Register>() == 32);

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}
const _: () = assert!(size_of::<WriteProtect>() == 24);

const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: i32 = 1;
const UFFDIO_API: libc::Ioctl = nix::request_code_readwrite!(0xaa, 0x3f, size_of::<Api>());
const UFFDIO_REGISTER: libc::Ioctl = nix::request_code_readwrite!(0xaa, 0x00, size_of::<Register>());
const UFFDIO_WRITEPROTECT: libc::Ioctl = nix::request_code_readwrite!(0xaa, 0x06, size_of::<WriteProtect>());
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;

/// The arguments of userfaultfd(2) with which a task opens one for floe. Faults of the kernel's own accesses would take a
/// privilege, and with asynchronous write protection nobody is told of any.
pub const OPEN_FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY) as u64;

/// Whether the kernel notes by itself which pages were written (UFFD_FEATURE_WP_ASYNC, Linux 6.7), so that nobody waits
/// for whoever follows.
///
/// # Errors
/// ENOSYS where it was built without; EPERM where the caller may not.
pub fn notes_written_pages() -> Result<bool, Errno> {
    // SAFETY: a number.
    let file = owned(unsafe { libc::syscall(libc::SYS_userfaultfd, OPEN_FLAGS) })?;
    let mut api = Api {
        api: UFFD_API,
        ..Api::default()
    };
    // SAFETY: the kernel reads and writes the structure, whose size the number of the request holds.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
    Ok(api.features & UFFD_FEATURE_WP_ASYNC != 0)
}

/// A userfaultfd for asynchronous write protection of one address space: that of the task that opened it. Closed, it
/// leaves no trace there.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

impl Userfault {
    /// One of the calling process.
    ///
    /// # Errors
    /// Those of userfaultfd(2); EINVAL where the kernel does not know asynchronous write protection.
    pub fn of_caller() -> Result<Self, Errno> {
        // SAFETY: a number.
        Self::begin(owned(unsafe { libc::syscall(libc::SYS_userfaultfd, OPEN_FLAGS) })?)
    }

    /// Shakes hands with one that was just opened, with [`OPEN_FLAGS`].
    ///
    /// # Errors
    /// EINVAL where the kernel does not know asynchronous write protection.
    pub fn begin(file: OwnedFd) -> Result<Self, Errno> {
        let mut api = Api {
            api: UFFD_API,
            features: UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes the structure, whose size the number of the request holds.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
        Ok(Self(file))
    }

    /// One that has shaken hands before.
    #[must_use]
    pub fn resume(file: OwnedFd) -> Self {
        Self(file)
    }

    /// Registers a range, all of which must be mapped; what is registered with this one already stays so.
    ///
    /// # Errors
    /// EBUSY where a part is registered with another one; EINVAL where a part can't be registered or is not mapped; ESRCH where the address
    /// space is gone.
    pub fn register(&self, range: Range<u64>) -> Result<(), Errno> {
        let mut register = Register {
            start: range.start,
            len: range.end - range.start,
            mode: UFFDIO_REGISTER_MODE_WP,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes the structure. What it does to memory is that of the task that opened the
        // descriptor; its content stays.
        Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) })?;
        Ok(())
    }

    /// Takes the marks off a registered range: all pages there count as written.
    ///
    /// # Errors
    /// ENOENT where a part is not registered, ESRCH, EAGAIN.
    pub fn forget(&self, range: Range<u64>) -> Result<(), Errno> {
        let mut protect = WriteProtect {
            start: range.start,
            len: range.end - range.start,
            mode: 0,
        };
        // SAFETY: as in `register`.
        Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WRITEPROTECT, &raw mut protect) })?;
        Ok(())
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::Userfault;
    use crate::{
        Pid,
        pagemap::{Category, Filter, PageRegion, Pagemap},
    };
    use nix::errno::Errno;
    use std::ops::Range;

    const PAGE: u64 = 4096;
    const PAGES: u64 = 16;
    const LEFT_OUT: Category = Category::FILE.union(Category::ZERO).union(Category::GUARD);
    const CONTENT: Filter = Filter {
        all: LEFT_OUT,
        inverted: LEFT_OUT,
        any: Category::PRESENT.union(Category::SWAPPED),
        report: Category::FOLLOWED.union(Category::WRITTEN),
    };
    const WRITTEN: Filter = Filter {
        all: LEFT_OUT.union(Category::WRITTEN),
        any: Category::PRESENT,
        ..CONTENT
    };

    /// Anonymous memory of the test's own.
    struct Memory(u64);

    impl Memory {
        fn new() -> Self {
            Self(map(0, 0))
        }

        fn range(&self) -> Range<u64> {
            self.0..self.0 + PAGES * PAGE
        }

        fn write(&self, page: u64) {
            write(self.0 + page * PAGE);
        }
    }

    fn map(at: u64, flags: i32) -> u64 {
        let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let bytes = (PAGES * PAGE) as usize;
        // SAFETY: a place of the kernel's choice, or one that the test has mapped and nobody else knows.
        let place = unsafe { libc::mmap(at as *mut _, bytes, 3, flags, -1, 0) };
        assert_ne!(place, libc::MAP_FAILED);
        // SAFETY: its own memory. Huge pages would be marked and split as a whole.
        assert_eq!(unsafe { libc::madvise(place, bytes, libc::MADV_NOHUGEPAGE) }, 0);
        place as u64
    }

    fn write(address: u64) {
        // SAFETY: mapped by the test, writable, and no reference leads there.
        unsafe { std::ptr::write_volatile(address as *mut u8, 7) };
    }

    fn scan(range: Range<u64>) -> Vec<PageRegion> {
        let mut found = Vec::new();
        let pagemap = Pagemap::open(Pid::new(std::process::id() as i32)).expect("open");
        pagemap
            .scan(range.start, range.end, &CONTENT, &mut found)
            .expect("scan");
        found
    }

    fn mark(range: Range<u64>) -> Vec<PageRegion> {
        let mut found = Vec::new();
        let pagemap = Pagemap::open(Pid::new(std::process::id() as i32)).expect("open");
        pagemap.protect_written(range, &WRITTEN, &mut found).expect("mark");
        found
    }

    /// The pages that are followed, there, and not written.
    fn unchanged(memory: &Memory) -> Vec<u64> {
        let is_marked = |region: &&PageRegion| region.categories == Category::FOLLOWED.bits();
        let pages = |region: &PageRegion| (region.start - memory.0) / PAGE..(region.end - memory.0) / PAGE;
        scan(memory.range()).iter().filter(is_marked).flat_map(pages).collect()
    }

    fn marked() -> (Userfault, Memory) {
        let memory = Memory::new();
        (0..8).for_each(|page| memory.write(page));
        let userfault = Userfault::of_caller().expect("a userfaultfd");
        userfault.register(memory.range()).expect("register");
        assert_eq!(unchanged(&memory), [0; 0], "nothing is marked yet");
        assert_eq!(mark(memory.range()).len(), 1);
        assert_eq!(unchanged(&memory), (0..8).collect::<Vec<_>>());
        (userfault, memory)
    }

    #[test]
    fn pages_that_are_written_lose_their_marks() {
        let (userfault, memory) = marked();
        memory.write(3);
        memory.write(12);
        assert_eq!(unchanged(&memory), [0, 1, 2, 4, 5, 6, 7]);
        let found: Vec<_> = mark(memory.range())
            .iter()
            .map(|region| (region.start - memory.0) / PAGE)
            .collect();
        assert_eq!(found, [3, 12], "and what was never there is not marked");
        assert_eq!(unchanged(&memory), [0, 1, 2, 3, 4, 5, 6, 7, 12]);
        userfault.forget(memory.range()).expect("take the marks off");
        assert_eq!(unchanged(&memory), [0; 0]);
    }

    #[test]
    fn pages_that_are_given_back_and_what_comes_in_their_place_have_no_mark() {
        let (_userfault, memory) = marked();
        let (start, bytes) = ((memory.0 + PAGE) as *mut _, 2 * PAGE as usize);
        // SAFETY: its own memory.
        assert_eq!(unsafe { libc::madvise(start, bytes, libc::MADV_DONTNEED) }, 0);
        assert_eq!(unchanged(&memory), [0, 3, 4, 5, 6, 7]);
        assert_eq!(scan(memory.range()).len(), 2, "they are no content either");
        memory.write(1);
        let second = (memory.0 + 2 * PAGE) as *const u8;
        // SAFETY: its own memory; a read has the page of zeros mapped there.
        assert_eq!(unsafe { std::ptr::read_volatile(second) }, 0);
        assert_eq!(unchanged(&memory), [0, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_mapping_in_the_place_of_another_has_no_marks() {
        let (userfault, memory) = marked();
        map(memory.0, libc::MAP_FIXED);
        (0..8).for_each(|page| memory.write(page));
        assert_eq!(unchanged(&memory), [0; 0]);
        userfault.register(memory.range()).expect("register");
        assert_eq!(unchanged(&memory), [0; 0]);
    }

    #[test]
    fn memory_that_is_moved_loses_its_marks() {
        let (userfault, memory) = marked();
        let other = Memory::new();
        let bytes = (PAGES * PAGE) as usize;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both are the test's own.
        let moved = unsafe { libc::mremap(memory.0 as *mut _, bytes, bytes, flags, other.0) };
        assert_eq!(moved as u64, other.0);
        assert_eq!(unchanged(&other), [0; 0]);
        userfault.register(other.range()).expect("register");
        userfault.forget(other.range()).expect("take the marks off");
        assert_eq!(unchanged(&other), [0; 0]);
        assert_eq!(mark(other.range()).len(), 1);
        assert_eq!(unchanged(&other), (0..8).collect::<Vec<_>>());
    }

    #[test]
    fn what_another_has_registered_is_not_taken_from_it() {
        let (userfault, memory) = marked();
        let other = Userfault::of_caller().expect("a userfaultfd");
        assert_eq!(other.register(memory.range()), Err(Errno::EBUSY));
        assert_eq!(userfault.register(memory.range()), Ok(()));
        assert_eq!(unchanged(&memory), (0..8).collect::<Vec<_>>());
        drop(userfault);
        assert_eq!(unchanged(&memory), [0; 0], "the marks end with who has set them");
        assert_eq!(other.register(memory.range()), Ok(()));
        assert_eq!(unchanged(&memory), [0; 0]);
    }
}
