//! Which pages may come later than the rest. Pure.
//!
//! Only what one process alone has in private anonymous memory: what relatives share they get by forking, and then it has to
//! be there. Nothing of what is locked, is not inherited as it is (MADV_DONTFORK, MADV_WIPEONFORK), has guards, or can't be
//! looked after; and nothing that a thread is at: around what its registers point at (stacks, what a system call that begins
//! again reads, what is executed), and what the kernel writes to by itself (rseq, robust lists, where a thread's end shows).

use crate::mm::runs::{Along, in_range, part};
use floe_image::{
    Image,
    record::{AddressSpaceRecord, ContentOwner, PageId, PageRun, ProcessRecord, VmaRecord, VmaSource},
};
use std::{collections::HashMap, ops::Range};

const PAGE: u64 = 4096;
/// With fewer pages in a process it is not worth a userfaultfd.
const FEWEST: u64 = 256;
/// Flags of mappings whose pages have to be there: locked, not as they are in a child, droppable, grows down.
const AT_ONCE: [&[u8; 2]; 5] = [b"lo", b"dc", b"wf", b"dp", b"gd"];
/// What lies around an address that a thread uses comes at once: this much below it, and above.
const AROUND: [u64; 2] = [PAGE, 8 * PAGE];

/// The pages of each process that may come later, lowest address first.
#[must_use]
pub fn may_come_later(image: &Image) -> HashMap<i32, Vec<PageRun>> {
    let shared = match image.address_spaces() {
        [_] => Vec::new(),
        _ => had_more_than_once(image),
    };
    let threads: HashMap<i32, Vec<&ProcessRecord>> = {
        let mut threads: HashMap<i32, Vec<&ProcessRecord>> = HashMap::new();
        let owners = image.owners(libc::CLONE_VM as u32);
        for process in image.processes() {
            let owner = owners.get(&process.pid.0).copied().unwrap_or(process.pid.0);
            threads.entry(owner).or_default().push(process);
        }
        threads
    };
    let spaces: HashMap<i32, &AddressSpaceRecord> = (image.address_spaces().iter())
        .map(|space| (space.pid.0, space))
        .collect();
    let mut all = HashMap::new();
    for map in image.page_maps() {
        let ContentOwner::Process(pid) = map.owner else {
            continue;
        };
        let Some(space) = spaces.get(&pid.0) else { continue };
        let users = threads.get(&pid.0).map_or(&[][..], Vec::as_slice);
        let runs = of_space(space, &map.runs, &shared, &in_use(users));
        if runs.iter().map(|run| run.pages).sum::<u64>() >= FEWEST {
            all.insert(pid.0, runs);
        }
    }
    all
}

/// Numbers of pages that stand at more than one address of the image, lowest first.
fn had_more_than_once(image: &Image) -> Vec<Range<u64>> {
    let runs = image.page_maps().iter().flat_map(|map| &map.runs);
    let mut borders: Vec<(u64, i64)> = runs
        .flat_map(|run| [(run.first.0, 1), (run.first.0 + run.pages, -1)])
        .collect();
    borders.sort_unstable();
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut depth = 0;
    for (at, change) in borders {
        let before = depth;
        depth += change;
        match (before, depth) {
            (1, 2) => match found.last_mut() {
                Some(last) if last.end == at => {}
                _ => found.push(at..at),
            },
            (2, 1) => {
                if let Some(last) = found.last_mut() {
                    last.end = at;
                }
            }
            _ => {}
        }
    }
    found
}

/// Addresses that threads use, with what lies around them, lowest first.
fn in_use(processes: &[&ProcessRecord]) -> Vec<Range<u64>> {
    let threads = processes.iter().flat_map(|process| &process.threads);
    let mut used: Vec<Range<u64>> = threads
        .flat_map(|thread| {
            let words = thread.registers.general.chunks_exact(8);
            let words = words.map(|word| u64::from_ne_bytes(word.try_into().expect("chunks of 8")));
            let kernel = [thread.robust_list.head, thread.tid_address];
            words.chain(kernel).chain(thread.rseq.map(|rseq| rseq.address))
        })
        .map(|address| {
            let page = address & !(PAGE - 1);
            page.saturating_sub(AROUND[0])..page.saturating_add(AROUND[1])
        })
        .collect();
    used.sort_unstable_by_key(|range| range.start);
    used.dedup_by(|next, last| {
        let overlaps = next.start <= last.end;
        if overlaps {
            last.end = last.end.max(next.end);
        }
        overlaps
    });
    used
}

fn of_space(space: &AddressSpaceRecord, runs: &[PageRun], shared: &[Range<u64>], used: &[Range<u64>]) -> Vec<PageRun> {
    if space.lock_future != 0 {
        return Vec::new();
    }
    let mut later = Vec::new();
    let (mut used, mut shared) = (Along::new(used), Along::new(shared));
    for vma in space.vmas.iter().filter(|vma| can_be_looked_after(vma)) {
        for inside in in_range(runs, vma.start..vma.end) {
            for unused in used.gaps(inside.start..inside.start + inside.pages * PAGE) {
                let run = part(&inside, unused.start, unused.end);
                let own = shared.gaps(run.first.0..run.first.0 + run.pages);
                later.extend(own.map(|pages| PageRun {
                    start: run.start + (pages.start - run.first.0) * PAGE,
                    pages: pages.end - pages.start,
                    first: PageId(pages.start),
                }));
            }
        }
    }
    later
}

/// Whether the kernel lets somebody look after a mapping, and nothing needs its pages.
pub(in crate::mm) fn can_be_looked_after(vma: &VmaRecord) -> bool {
    vma.source == VmaSource::Anonymous
        && vma.details.huge_page == 0
        && vma.details.guards.is_empty()
        && !AT_ONCE.iter().any(|flag| vma.flags.contains(flag))
}

#[cfg(test)]
mod tests {
    use super::{PAGE, of_space};
    use floe_image::record::{AddressSpaceRecord, MmLayout, NsPid, PageId, PageRun, VmaDetails, VmaRecord, VmaSource};

    fn run(start: u64, pages: u64, first: u64) -> PageRun {
        PageRun {
            start: start * PAGE,
            pages,
            first: PageId(first),
        }
    }

    fn vma(start: u64, end: u64) -> VmaRecord {
        VmaRecord {
            start: start * PAGE,
            end: end * PAGE,
            prot: 3,
            flags: vec![],
            name: None,
            source: VmaSource::Anonymous,
            details: VmaDetails::default(),
        }
    }

    #[test]
    fn pages_of_others_and_pages_in_use_come_at_once() {
        let locked = VmaRecord {
            flags: vec![*b"lo"],
            ..vma(100, 120)
        };
        let space = AddressSpaceRecord {
            pid: NsPid(1),
            vmas: vec![vma(10, 50), locked],
            layout: MmLayout::default(),
            auxv: vec![],
            exe: 0,
            lock_future: 0,
        };
        let runs = [run(10, 40, 0), run(100, 20, 40)];
        let (used, shared) = ([15 * PAGE..18 * PAGE, 48 * PAGE..90 * PAGE], [20..25, 39..50]);
        let later = of_space(&space, &runs, &shared, &used);
        assert_eq!(later, [run(10, 5, 0), run(18, 12, 8), run(35, 13, 25)]);
        let locks = AddressSpaceRecord {
            lock_future: 1,
            ..space
        };
        assert_eq!(of_space(&locks, &runs, &[], &[]), []);
    }
}
