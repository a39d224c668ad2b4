//! What PAGEMAP_SCAN tells, on kernels that do not have it: read from the entries of the pagemap, one a page.
//! Documentation/admin-guide/mm/pagemap.rst.

use super::{Category, Entry, Filter, PageRegion, Pagemap};
use crate::Pid;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::{io, num::NonZeroUsize, ops::Range, sync::OnceLock};

const PAGE: u64 = 4096;
/// Entries that are read at once.
const ENTRIES: u64 = 1 << 15;

/// The frame of the zero page, where it may be known (CAP_SYS_ADMIN).
fn zero_frame() -> Option<u64> {
    static FRAME: OnceLock<Option<u64>> = OnceLock::new();
    *FRAME.get_or_init(|| {
        let length = NonZeroUsize::new(PAGE as usize)?;
        // SAFETY: a new mapping.
        let page = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE) }.ok()?;
        let start = page.as_ptr() as u64;
        let found = || -> io::Result<Option<u64>> {
            let own = Pid::new(std::process::id() as i32);
            // SAFETY: the mapping, which can be read. What is read before it is written is the zero page.
            unsafe { page.as_ptr().cast::<u8>().read_volatile() };
            Ok(Pagemap::open(own)?.entries(start, 1)?[0].frame())
        };
        let frame = found().ok().flatten();
        // SAFETY: the mapping from above, which nobody uses any more.
        unsafe { munmap(page, PAGE as usize) }.ok()?;
        frame
    })
}

/// What is known of a page. Parts of huge pages are not told, and there are no guards.
fn categories(entry: Entry, zero: Option<u64>, anonymous: bool) -> Category {
    let mut found = Category::empty();
    found.set(Category::PRESENT, entry.present());
    found.set(Category::SWAPPED, entry.swapped());
    found.set(Category::FILE, entry.of_file());
    let is_zero = entry.present() && !entry.exclusive() && zero.is_some() && entry.frame() == zero;
    // In anonymous memory the huge zero page alone counts as a file's.
    let is_huge_zero = anonymous && entry.present() && entry.of_file();
    found.set(Category::ZERO, is_zero || is_huge_zero);
    found
}

impl Filter {
    fn takes(&self, page: Category) -> bool {
        let page = page.symmetric_difference(self.inverted);
        page.contains(self.all) && (self.any.is_empty() || page.intersects(self.any))
    }
}

/// As [`Pagemap::scan`], of a range whose pages are anonymous where the filter does not ask for files.
pub(super) fn scan(
    pagemap: &Pagemap,
    range: Range<u64>,
    filter: &Filter,
    found: &mut Vec<PageRegion>,
) -> io::Result<()> {
    let zero = zero_frame();
    let anonymous = !filter.all.contains(Category::FILE);
    let mut start = range.start;
    while start < range.end {
        let count = ENTRIES.min((range.end - start).div_ceil(PAGE));
        for (entry, at) in pagemap.entries(start, count as usize)?.into_iter().zip(0..) {
            let page = categories(entry, zero, anonymous);
            if filter.takes(page) {
                let from = start + at * PAGE;
                let region = PageRegion {
                    start: from,
                    end: from + PAGE,
                    categories: page.intersection(filter.report).bits(),
                };
                super::add(found, region);
            }
        }
        start += count * PAGE;
    }
    Ok(())
}
