//! /proc/PID/pagemap: which pages are there. The PAGEMAP_SCAN ioctl (Linux 6.7), Documentation/admin-guide/mm/pagemap.rst,
//! and what does for it before.

mod older;

use crate::{Pid, parallel};
use nix::errno::Errno;
use std::{
    fs::File,
    io,
    ops::Range,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

bitflags::bitflags! {
    /// PAGE_IS_* categories, include/uapi/linux/fs.h.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Category: u64 {
        /// In a mapping with asynchronous write protection: see [`Userfault`](crate::userfault::Userfault).
        const FOLLOWED = 1;
        /// Written since write-protected.
        const WRITTEN = 1 << 1;
        /// File-backed.
        const FILE = 1 << 2;
        /// In memory.
        const PRESENT = 1 << 3;
        /// In swap.
        const SWAPPED = 1 << 4;
        /// The shared zero page.
        const ZERO = 1 << 5;
        /// Part of a huge page.
        const HUGE = 1 << 6;
        /// A guard page (Linux 6.15).
        const GUARD = 1 << 8;
    }
}

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageRegion {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
    /// [`Category`] bits of its pages, of those asked for.
    pub categories: u64,
}
const _: () = assert!(size_of::<PageRegion>() == 24);

/// `struct pm_scan_arg`.
#[repr(C)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}
const _: () = assert!(size_of::<ScanArguments>() == 96);

const PM_SCAN_WP_MATCHING: u64 = 1;
const PAGEMAP_SCAN: libc::c_ulong = nix::request_code_readwrite!(b'f', 16, size_of::<ScanArguments>());

/// What a scan looks for.
#[derive(Debug, Clone, Copy)]
pub struct Filter {
    /// All of these must hold, after inverting those in `inverted`.
    pub all: Category,
    /// Any of these must hold; empty for no such condition.
    pub any: Category,
    /// Conditions to invert.
    pub inverted: Category,
    /// Which to report.
    pub report: Category,
}

impl Filter {
    fn mentions(&self, category: Category) -> bool {
        (self.all | self.any | self.inverted | self.report).intersects(category)
    }

    /// The same for a kernel without guards; `None` where it asks for these alone.
    fn without_guards(&self) -> Option<Self> {
        let guards = Category::GUARD;
        let wants = self.all.difference(self.inverted).contains(guards);
        let any = self.any.difference(guards);
        (!wants && any.is_empty() == self.any.is_empty()).then(|| Self {
            all: self.all.difference(guards),
            any,
            inverted: self.inverted.difference(guards),
            report: self.report.difference(guards),
        })
    }
}

/// An open pagemap.
#[derive(Debug)]
pub struct Pagemap(File);

const ENTRY_PFN: u64 = (1 << 55) - 1;
const ENTRY_EXCLUSIVE: u64 = 1 << 56;
const ENTRY_OF_FILE: u64 = 1 << 61;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_PRESENT: u64 = 1 << 63;

/// One entry of the pagemap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// Page frame number, where the page is present and the reader may know (CAP_SYS_ADMIN).
    #[must_use]
    pub fn frame(self) -> Option<u64> {
        let frame = self.0 & ENTRY_PFN;
        (self.0 & ENTRY_PRESENT != 0 && frame != 0).then_some(frame)
    }

    /// Whether it is in memory.
    #[must_use]
    pub fn present(self) -> bool {
        self.0 & ENTRY_PRESENT != 0
    }

    /// Whether it is in swap.
    #[must_use]
    pub fn swapped(self) -> bool {
        self.0 & ENTRY_SWAPPED != 0
    }

    /// Whether it is one of a file, or of shared memory.
    #[must_use]
    pub fn of_file(self) -> bool {
        self.0 & ENTRY_OF_FILE != 0
    }

    /// Whether only this address space maps the page.
    #[must_use]
    pub fn exclusive(self) -> bool {
        self.0 & ENTRY_EXCLUSIVE != 0
    }
}

/// Bytes of address space that one thread looks at alone.
const PART: u64 = 64 << 20;
/// Cuts a range into at most so many parts, none of which is small, between huge pages.
fn parts(range: Range<u64>, most: usize) -> Vec<Range<u64>> {
    const HUGE: u64 = 2 << 20;
    let bytes = range.end.saturating_sub(range.start);
    let count = (bytes / PART).clamp(1, most as u64);
    let at = |number| match number {
        0 => range.start,
        _ if number == count => range.end,
        _ => (range.start + bytes / count * number) / HUGE * HUGE,
    };
    (0..count).map(|number| at(number)..at(number + 1)).collect()
}

/// Adds a region to those that lie before it.
fn add(found: &mut Vec<PageRegion>, region: PageRegion) {
    match found.last_mut() {
        Some(last) if last.end == region.start && last.categories == region.categories => last.end = region.end,
        _ => found.push(region),
    }
}

impl Pagemap {
    /// Opens a process's pagemap.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(pid: Pid) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/pagemap")).map(Self)
    }

    /// Appends to `found` the regions in `start..end` that pass the filter, merged where they touch. A large range is looked at
    /// by several threads, each a part of it.
    ///
    /// Before Linux 6.7 the entry of each page is read, which tells nothing of huge pages; zero pages count as others for who is
    /// not root.
    ///
    /// # Errors
    /// Those of ioctl(2) and pread(2).
    pub fn scan(&self, start: u64, end: u64, filter: &Filter, found: &mut Vec<PageRegion>) -> Result<(), Errno> {
        if end.saturating_sub(start) < 2 * PART {
            return self.walk(0, start..end, filter, found);
        }
        let parts = parts(start..end, parallel::threads());
        let looked_at = parallel::map(&parts, 1, |part| {
            let mut regions = Vec::new();
            self.walk(0, part.clone(), filter, &mut regions).map(|()| regions)
        });
        for regions in looked_at {
            regions?.into_iter().for_each(|region| add(found, region));
        }
        Ok(())
    }

    /// Whether the kernel has PAGEMAP_SCAN, tried on a page.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn knows_scan(&self, page: u64, filter: &Filter) -> Result<bool, Errno> {
        match self.ask(0, page..page + 4096, filter, &mut Vec::new()) {
            Ok(()) => Ok(true),
            Err(Errno::ENOTTY) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// As [`Pagemap::scan`], and marks what it finds as not written, in the same instant for each page. Leaves out mappings
    /// that nobody follows. The filter must ask for [`Category::WRITTEN`] and for more: what is not there is not to be
    /// marked.
    ///
    /// # Errors
    /// As [`Pagemap::scan`], and ENOTTY before Linux 6.7.
    pub fn protect_written(
        &self,
        range: Range<u64>,
        filter: &Filter,
        found: &mut Vec<PageRegion>,
    ) -> Result<(), Errno> {
        self.walk(PM_SCAN_WP_MATCHING, range, filter, found)
    }

    fn walk(&self, flags: u64, range: Range<u64>, filter: &Filter, found: &mut Vec<PageRegion>) -> Result<(), Errno> {
        match self.ask(flags, range.clone(), filter, found) {
            Err(Errno::EINVAL) if filter.mentions(Category::GUARD) => match filter.without_guards() {
                // There are none (Linux 6.13).
                None => Ok(()),
                Some(filter) => self.ask(flags, range, &filter, found),
            },
            Err(Errno::ENOTTY) if flags == 0 => match filter.without_guards() {
                None => Ok(()),
                Some(filter) => older::scan(self, range, &filter, found)
                    .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
            },
            asked => asked,
        }
    }

    fn ask(&self, flags: u64, range: Range<u64>, filter: &Filter, found: &mut Vec<PageRegion>) -> Result<(), Errno> {
        let Range { start, end } = range;
        let mut from = start;
        let mut batch = [PageRegion::default(); 512];
        while from < end {
            let mut arguments = ScanArguments {
                size: size_of::<ScanArguments>() as u64,
                flags,
                start: from,
                end,
                walk_end: 0,
                vec: batch.as_mut_ptr() as u64,
                vec_len: batch.len() as u64,
                max_pages: 0,
                category_inverted: filter.inverted.bits(),
                category_mask: filter.all.bits(),
                category_anyof_mask: filter.any.bits(),
                return_mask: filter.report.bits(),
            };
            // SAFETY: `arguments` names `batch` with its true length, and both outlive the call.
            let result = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
            let got = Errno::result(result)?;
            batch[..got as usize].iter().for_each(|region| add(found, *region));
            from = arguments.walk_end;
        }
        Ok(())
    }

    /// Reads the entries of `entries.len()` pages of 4096 bytes from `start` on.
    ///
    /// # Errors
    /// Those of pread(2).
    pub fn entries(&self, start: u64, count: usize) -> io::Result<Vec<Entry>> {
        let mut bytes = vec![0; count * 8];
        self.0.read_exact_at(&mut bytes, start / 4096 * 8)?;
        Ok(bytes
            .chunks_exact(8)
            .map(|b| Entry(u64::from_ne_bytes(b.try_into().expect("chunks of 8"))))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::{Category, Filter, PART, Pagemap, older, parts};
    use crate::Pid;
    use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
    use std::num::NonZeroUsize;

    #[test]
    fn parts_are_the_whole() {
        for (start, bytes) in [
            (0, 0),
            (4096, 4096),
            (0x7f00_0000_1000, PART),
            (0x1000, 7 * PART + 4096),
        ] {
            for most in 1..6 {
                let parts = parts(start..start + bytes, most);
                assert!((1..=most).contains(&parts.len()));
                assert_eq!(parts.first().map(|part| part.start), Some(start));
                assert_eq!(parts.last().map(|part| part.end), Some(start + bytes));
                assert!(
                    parts
                        .windows(2)
                        .all(|pair| pair[0].end == pair[1].start && pair[0].start < pair[0].end)
                );
            }
        }
    }

    #[test]
    fn several_threads_find_what_one_does() {
        let bytes = 5 * PART as usize;
        let length = NonZeroUsize::new(bytes).expect("not nothing");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping.
        let memory = unsafe {
            mmap_anonymous(
                None,
                length,
                protection,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
            )
        };
        let memory = memory.expect("mmap");
        // SAFETY: the whole mapping, which nobody uses yet.
        unsafe { madvise(memory, bytes, MmapAdvise::MADV_NOHUGEPAGE) }.expect("madvise");
        // Alone, beside each other, and around each border between parts.
        let touched = (0..bytes / 4096).filter(|page| page % 97 == 0 || page % 1000 < 3 || page % (1 << 14) < 2);
        // SAFETY: the mapping, zeros, which nobody else has.
        let bytes_of = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr().cast::<u8>(), bytes) };
        touched.for_each(|page| bytes_of[page * 4096] = 1);
        let pagemap = Pagemap::open(Pid::new(std::process::id() as i32)).expect("the pagemap");
        let filter = Filter {
            all: Category::empty(),
            inverted: Category::empty(),
            any: Category::PRESENT | Category::SWAPPED,
            report: Category::empty(),
        };
        let start = memory.as_ptr() as u64;
        let range = start..start + bytes as u64;
        let (mut one, mut several) = (Vec::new(), Vec::new());
        pagemap.walk(0, range.clone(), &filter, &mut one).expect("a scan");
        pagemap
            .scan(range.start, range.end, &filter, &mut several)
            .expect("a scan");
        assert!(one.len() > 100 && one == several, "{} and {}", one.len(), several.len());
        let mut by_entries = Vec::new();
        older::scan(&pagemap, range.clone(), &filter, &mut by_entries).expect("its entries");
        assert_eq!(one, by_entries);
        // Those that are only read are zero pages.
        let content = Filter {
            all: Category::ZERO,
            inverted: Category::ZERO,
            ..filter
        };
        std::hint::black_box(bytes_of[50 * 4096]);
        let (mut asked, mut by_entries) = (Vec::new(), Vec::new());
        pagemap.walk(0, range.clone(), &content, &mut asked).expect("a scan");
        older::scan(&pagemap, range, &content, &mut by_entries).expect("its entries");
        assert!(asked == one && by_entries == one);
        // SAFETY: the mapping from above, which nobody uses any more.
        unsafe { munmap(memory, bytes) }.expect("munmap");
    }
}
