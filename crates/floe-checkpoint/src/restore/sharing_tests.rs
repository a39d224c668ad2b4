//! Trees whose parents have lost what their children share.

use super::{Memory, Wants};
use crate::restore::plan::Step;
use floe_image::record::{AddressSpaceRecord, MmLayout, NsPid, PageId, PageRun, VmaDetails, VmaRecord, VmaSource};
use std::collections::HashMap;

const PAGE: u64 = 4096;

fn vma(start: u64, pages: u64) -> VmaRecord {
    VmaRecord {
        start: start * PAGE,
        end: (start + pages) * PAGE,
        prot: 3,
        flags: vec![],
        name: None,
        source: VmaSource::Anonymous,
        details: VmaDetails::default(),
    }
}

fn space(pid: i32, vmas: &[VmaRecord]) -> AddressSpaceRecord {
    AddressSpaceRecord {
        pid: NsPid(pid),
        vmas: vmas.to_vec(),
        layout: MmLayout::default(),
        auxv: vec![],
        exe: 0,
        lock_future: 0,
    }
}

fn run(start: u64, pages: u64, first: u64) -> PageRun {
    PageRun {
        start: start * PAGE,
        pages,
        first: PageId(first),
    }
}

/// Processes with mappings and pages, forked as told.
fn lendings(processes: &[(i32, Vec<VmaRecord>, Vec<PageRun>)], forks: &[(i32, i32)]) -> HashMap<i32, super::Lending> {
    let spaces: Vec<AddressSpaceRecord> = processes.iter().map(|(pid, vmas, _)| space(*pid, vmas)).collect();
    let memory = Memory {
        spaces: spaces.iter().map(|space| (space.pid.0, space)).collect(),
        runs: processes.iter().map(|(pid, _, runs)| (*pid, runs.as_slice())).collect(),
        huge: HashMap::new(),
    };
    let fork = |(by, pid): &(i32, i32)| Step::Fork {
        by: *by,
        pid: *pid,
        namespace: 0,
        helper: false,
    };
    let steps: Vec<Step> = forks.iter().map(fork).collect();
    Wants::find(&memory, &steps).lendings(&memory, &steps)
}

#[test]
fn nothing_is_lent_where_the_parent_has_all() {
    let tree = [
        (1, vec![vma(0, 8)], vec![run(0, 8, 0)]),
        (2, vec![vma(0, 8)], vec![run(0, 8, 0)]),
        (3, vec![vma(0, 8)], vec![run(0, 4, 0), run(4, 4, 20)]),
    ];
    assert!(lendings(&tree, &[(1, 2), (1, 3)]).is_empty());
}

#[test]
fn a_parent_that_wrote_over_its_pages_holds_the_old_ones_meanwhile() {
    let tree = [
        (1, vec![vma(0, 8)], vec![run(0, 8, 100)]),
        (2, vec![vma(0, 8)], vec![run(0, 8, 0)]),
        (3, vec![vma(0, 8)], vec![run(0, 2, 50), run(2, 6, 2)]),
        (4, vec![vma(0, 8)], vec![run(0, 8, 100)]),
    ];
    let found = lendings(&tree, &[(1, 2), (1, 3), (1, 4)]);
    let lending = &found[&1];
    // What only one child has is not lent, but written there.
    assert_eq!(lending.first.runs, [run(0, 2, 100), run(2, 6, 2)]);
    assert_eq!((lending.last, lending.before.len(), found.len()), (3, 0, 1));
}

#[test]
fn what_the_parent_unmapped_is_mapped_meanwhile_and_goes_through_generations() {
    let tree = [
        (1, vec![vma(0, 2)], vec![run(0, 2, 100)]),
        (2, vec![vma(0, 2)], vec![run(0, 2, 100)]),
        (3, vec![vma(0, 2), vma(8, 4)], vec![run(0, 2, 100), run(8, 4, 8)]),
        (4, vec![vma(8, 4)], vec![run(8, 4, 8)]),
    ];
    let found = lendings(&tree, &[(1, 2), (2, 3), (1, 4)]);
    for pid in [1, 2] {
        assert_eq!(found[&pid].first.space.vmas, [vma(0, 2), vma(8, 4)], "{pid}");
        assert_eq!(found[&pid].first.runs, [run(0, 2, 100), run(8, 4, 8)], "{pid}");
    }
    assert_eq!((found[&1].last, found[&2].last, found.len()), (4, 3, 2));
}

#[test]
fn two_pages_at_one_address_are_lent_one_after_the_other() {
    let one = |pid, first| (pid, vec![vma(0, 4)], vec![run(0, 4, first)]);
    let tree = [one(1, 100), one(2, 0), one(3, 0), one(4, 50), one(5, 50)];
    let lending = &lendings(&tree, &[(1, 2), (1, 3), (1, 4), (1, 5)])[&1];
    assert_eq!(lending.first.runs, [run(0, 4, 0)]);
    assert_eq!(lending.before[&4].runs, [run(0, 4, 50)]);
    assert_eq!((lending.before.len(), lending.last), (1, 5));
}

#[test]
fn what_children_do_not_inherit_is_not_lent() {
    let kept_back = VmaRecord {
        flags: vec![*b"dc"],
        ..vma(0, 4)
    };
    let tree = [
        (1, vec![vma(0, 4)], vec![run(0, 4, 100)]),
        (2, vec![kept_back.clone()], vec![run(0, 4, 0)]),
        (3, vec![kept_back], vec![run(0, 4, 0)]),
    ];
    let lending = &lendings(&tree, &[(1, 2), (1, 3)])[&1];
    assert_eq!(
        (&lending.first.space.vmas[..], &lending.first.runs[..]),
        (&tree[0].1[..], &tree[0].2[..])
    );
}

#[test]
fn a_mapping_that_grew_is_lent_at_its_full_length() {
    let tree = [
        (1, vec![vma(0, 2)], vec![run(0, 2, 100)]),
        (2, vec![vma(0, 6)], vec![run(0, 6, 0)]),
        (3, vec![vma(0, 8)], vec![run(0, 6, 0)]),
    ];
    let lending = &lendings(&tree, &[(1, 2), (1, 3)])[&1];
    assert_eq!(lending.first.space.vmas, [vma(0, 6)]);
    assert_eq!(lending.first.runs, [run(0, 6, 0)]);
}
