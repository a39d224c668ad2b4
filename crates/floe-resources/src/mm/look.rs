//! What the page tables of a process show: how many pages have content of their own, and where guard regions are.

use super::{
    content::{ContentError, Contents},
    private::is_copied_by_fork,
};
use crate::tree::FoundProcess;
use floe_image::record::AddressSpaceRecord;
use floe_sys::{
    Pid,
    pagemap::{Category, Filter, PageRegion, Pagemap},
    procfs::Mapping,
};
use std::{collections::HashMap, io};

/// Regions that are kept of one process, at most: of memory in smaller pieces they are looked for once more.
const MOST_REGIONS: usize = 64 << 10;

/// Where a process that stands still has private pages with content of their own.
#[derive(Debug, Default)]
pub struct SeenPages {
    /// By the beginning of their mapping.
    regions: HashMap<u64, Vec<PageRegion>>,
    count: usize,
    /// How many pages these are, and those that are not kept.
    pub pages: u64,
}

impl SeenPages {
    /// Those of a mapping, if they are kept.
    pub(super) fn of(&self, mapping: &Mapping) -> Option<&[PageRegion]> {
        self.regions.get(&mapping.start).map(Vec::as_slice)
    }

    fn keep(&mut self, mapping: &Mapping, regions: Vec<PageRegion>) {
        self.pages += regions
            .iter()
            .map(|region| (region.end - region.start) / 4096)
            .sum::<u64>();
        if self.count + regions.len() <= MOST_REGIONS {
            self.count += regions.len();
            self.regions.insert(mapping.start, regions);
        }
    }
}

/// What the page tables of a process show of its mappings.
#[derive(Debug)]
pub struct PageTables {
    /// Private pages with content of their own.
    pub seen: SeenPages,
    guards: Vec<Guards>,
}

/// Guard regions of one mapping.
#[derive(Debug)]
struct Guards {
    start: u64,
    shared: bool,
    regions: Vec<(u64, u64)>,
}

impl PageTables {
    /// Reads them as far as they are those of the `wanted` mappings of a process, which is asked for by its `task`.
    ///
    /// # Errors
    /// [`ContentError`].
    pub fn read(task: Pid, mappings: &[Mapping], wanted: impl Fn(&Mapping) -> bool) -> Result<Self, ContentError> {
        let pagemap = open_pagemap(task)?;
        let mut tables = Self {
            seen: SeenPages::default(),
            guards: Vec::new(),
        };
        for mapping in mappings.iter().filter(|mapping| wanted(mapping)) {
            let found = look_at_mapping((task, &pagemap), mapping)?;
            if !found.guards.is_empty() {
                tables.guards.push(Guards {
                    start: mapping.start,
                    shared: mapping.shared,
                    regions: found.guards,
                });
            }
            if !mapping.shared {
                tables.seen.keep(mapping, found.content);
            }
        }
        Ok(tables)
    }

    /// Notes guard regions in the process's record, and for what `contents` are read where they are mapped.
    pub fn note_guards(&self, found: &FoundProcess, space: &mut AddressSpaceRecord, contents: &mut Contents) {
        for guards in &self.guards {
            if guards.shared {
                contents.leave_out(&found.subject(), (found.task(), guards.start), &guards.regions);
            }
            note_guards(guards.start, &guards.regions, space);
        }
    }
}

fn note_guards(mapping: u64, regions: &[(u64, u64)], space: &mut AddressSpaceRecord) {
    if let Ok(index) = space.vmas.binary_search_by_key(&mapping, |vma| vma.start) {
        space.vmas[index].details.guards = regions.to_vec();
    }
}

/// Whether a copy of the process by fork shows what [`PageTables`] tell of a mapping: pages of files, of shared memory and
/// their guards a fork may leave out.
#[must_use]
pub fn shows_in_a_copy(mapping: &Mapping) -> bool {
    is_anonymous(mapping) && is_copied_by_fork(mapping)
}

/// Notes guard regions of a process of which `copy` is a copy, where they [show](shows_in_a_copy) there.
///
/// # Errors
/// [`ContentError`].
pub fn look_at_copied_pages(
    copy: Pid,
    mappings: &[Mapping],
    space: &mut AddressSpaceRecord,
) -> Result<(), ContentError> {
    let pagemap = open_pagemap(copy)?;
    for mapping in mappings.iter().filter(|mapping| shows_in_a_copy(mapping)) {
        let found = look_at_mapping((copy, &pagemap), mapping)?;
        note_guards(mapping.start, &found.guards, space);
    }
    Ok(())
}

fn scan_error(pid: Pid, source: io::Error) -> ContentError {
    ContentError {
        action: "scan",
        path: format!("/proc/{pid}/pagemap"),
        source,
    }
}

fn open_pagemap(pid: Pid) -> Result<Pagemap, ContentError> {
    Pagemap::open(pid).map_err(|source| scan_error(pid, source))
}

/// What is found in the page tables of one mapping.
#[derive(Default)]
struct FoundPages {
    /// Private pages with content, as [`content_of`] finds them.
    content: Vec<PageRegion>,
    guards: Vec<(u64, u64)>,
}

fn look_at_mapping((pid, pagemap): (Pid, &Pagemap), mapping: &Mapping) -> Result<FoundPages, ContentError> {
    let mut found = FoundPages::default();
    if mapping.path.starts_with(b"[v") {
        return Ok(found);
    }
    let filter = if mapping.shared {
        Filter {
            all: Category::GUARD,
            inverted: Category::empty(),
            any: Category::empty(),
            report: Category::GUARD,
        }
    } else {
        let content = content_of(mapping);
        Filter {
            // Guards count as swapped.
            all: content.all.difference(Category::GUARD),
            inverted: content.inverted.difference(Category::GUARD),
            report: content.report | Category::GUARD,
            ..content
        }
    };
    let mut regions = Vec::new();
    pagemap
        .scan(mapping.start, mapping.end, &filter, &mut regions)
        .map_err(|error| scan_error(pid, error.into()))?;
    for region in regions {
        if region.categories & Category::GUARD.bits() != 0 {
            found.guards.push((region.start, region.end));
        } else {
            found.content.push(region);
        }
    }
    Ok(found)
}

fn is_anonymous(mapping: &Mapping) -> bool {
    !mapping.shared && mapping.inode == 0
}

/// Guards count as swapped.
const NO_CONTENT: Category = Category::ZERO.union(Category::GUARD);

/// Finds pages of an anonymous mapping with content, not the zero page's, and no guards; and which are huge.
pub(super) const ANONYMOUS_CONTENT: Filter = Filter {
    all: NO_CONTENT,
    inverted: NO_CONTENT,
    any: Category::PRESENT.union(Category::SWAPPED),
    report: Category::HUGE,
};

/// Finds pages of a private mapping whose content is its own.
pub(super) fn content_of(mapping: &Mapping) -> Filter {
    if is_anonymous(mapping) {
        return ANONYMOUS_CONTENT;
    }
    // For that the kernel has to look at each page, and not at the page tables alone, which takes twice as long.
    let none = NO_CONTENT | Category::FILE;
    Filter {
        all: none,
        inverted: none,
        ..ANONYMOUS_CONTENT
    }
}
