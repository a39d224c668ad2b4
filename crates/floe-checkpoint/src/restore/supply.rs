//! Memory that this machine must have to give: the NUMA nodes that policies name, and huge pages of hugetlbfs.

use super::{contents::runs, preflight::Obstacle};
use floe_image::{
    Image,
    record::{AddressSpaceRecord, ContentOwner, GhostKind, PageRun, VmaRecord},
};
use floe_sys::procfs::{Status, read_text};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

const PAGE: u64 = 4096;

/// Finds what is lacking. `own` is floe's own status.
pub(super) fn lacking(image: &Image, own: &Status) -> BTreeSet<Obstacle> {
    let nodes = missing_nodes(image, own).map(|node| Obstacle {
        object: format!("NUMA node {node}"),
        reason: "a policy names it, and floe may not use it here".to_owned(),
    });
    let pages = huge_pages_needed(image).into_iter().filter_map(|(bytes, needed)| {
        let there = huge_pages_free(bytes);
        (there < needed).then(|| Obstacle {
            object: format!("huge pages of {} KiB", bytes >> 10),
            reason: format!("the image takes {needed} at least, and {there} are free here (nr_hugepages)"),
        })
    });
    nodes.chain(pages).collect()
}

fn missing_nodes(image: &Image, own: &Status) -> impl Iterator<Item = u32> {
    let vmas = image.address_spaces().iter().flat_map(|space| &space.vmas);
    let policies = vmas.filter_map(|vma| vma.details.policy.as_ref());
    let named: BTreeSet<u32> = policies.flat_map(|policy| policy.nodes.iter().copied()).collect();
    named.into_iter().filter(|node| !own.memory_nodes.contains(node))
}

/// How many pages of each size the image takes at least: what private mappings and System V segments reserve, and what
/// holds something. Of deleted files of hugetlbfs it is not known before they are made.
fn huge_pages_needed(image: &Image) -> BTreeMap<u64, u64> {
    let mut needed = BTreeMap::new();
    for space in image.address_spaces() {
        for vma in space.vmas.iter().filter(|vma| vma.details.huge_page != 0) {
            let bytes = vma.details.huge_page;
            *needed.entry(bytes).or_default() += private_pages(image, space, vma);
        }
    }
    let shared = image
        .shmems()
        .iter()
        .map(|record| (record.huge_page, ContentOwner::Shmem(record.id)));
    let memfds = image.ghosts().iter().filter_map(|record| {
        let GhostKind::Memfd(memfd) = &record.kind else {
            return None;
        };
        Some((memfd.huge_page, ContentOwner::Ghost(record.id)))
    });
    for (bytes, owner) in shared.chain(memfds).filter(|(bytes, _)| *bytes != 0) {
        *needed.entry(bytes).or_default() += touched(runs(image, owner), bytes, &(0..u64::MAX));
    }
    let all = image.sandbox().ipc_namespaces();
    for segment in all.flat_map(|(_, record)| &record.segments) {
        if let Some(pages) = segment.whole().checked_div(segment.huge_page) {
            *needed.entry(segment.huge_page).or_default() += pages;
        }
    }
    needed
}

fn private_pages(image: &Image, space: &AddressSpaceRecord, vma: &VmaRecord) -> u64 {
    if vma.flags.contains(b"nr") {
        let own = runs(image, ContentOwner::Process(space.pid));
        touched(own, vma.details.huge_page, &(vma.start..vma.end))
    } else {
        (vma.end - vma.start) / vma.details.huge_page
    }
}

/// How many pages of `bytes` bytes within `range` hold something.
fn touched(runs: &[PageRun], bytes: u64, range: &Range<u64>) -> u64 {
    let mut count = 0;
    let mut counted = None;
    for run in runs {
        let (start, end) = (
            run.start.max(range.start),
            (run.start + run.pages * PAGE).min(range.end),
        );
        if start >= end {
            continue;
        }
        let (first, last) = (start / bytes, (end - 1) / bytes);
        count += last - first + u64::from(counted != Some(first));
        counted = Some(last);
    }
    count
}

/// How many can be had; none of a size that this machine does not have.
fn huge_pages_free(bytes: u64) -> u64 {
    let value = |name: &str| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{name}", bytes >> 10);
        read_text(&path).ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    let count = |name| value(name).unwrap_or(0);
    let spare = count("nr_overcommit_hugepages").saturating_sub(count("surplus_hugepages"));
    count("free_hugepages").saturating_sub(count("resv_hugepages")) + spare
}

#[cfg(test)]
mod tests {
    use super::touched;
    use floe_image::record::{PageId, PageRun};

    #[test]
    fn each_huge_page_counts_once() {
        let run = |start, pages| PageRun {
            start,
            pages,
            first: PageId(0),
        };
        let huge = 2 << 20;
        let runs = [run(0x1000, 1), run(0x3000, 600), run(0x60_0000, 1), run(0x80_0000, 1)];
        assert_eq!(touched(&runs, huge, &(0..u64::MAX)), 4);
        assert_eq!(touched(&runs, huge, &(0x20_0000..0x80_0000)), 2);
        assert_eq!(touched(&[], huge, &(0..u64::MAX)), 0);
    }
}
