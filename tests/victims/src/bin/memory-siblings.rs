//! Pages that relatives share copy-on-write though none of their parents has them any more: the one that made them has
//! written others over them or unmapped them, or has ended. They stay shared.

use victims::{
    Findings, Stage,
    memory::{Mapping, PAGE, kib_at},
    play,
    stage::fork,
};

const PAGES: usize = 1024;
const CHILDREN: usize = 6;
/// Each child makes so many pages its own.
const OWN: usize = 16;

fn main() {
    play(|stage| {
        let areas: Vec<Mapping> = (0..3).map(|_| Mapping::private(PAGES * PAGE)).collect();
        for area in &areas {
            area.advise(0, PAGES, libc::MADV_NOHUGEPAGE).expect("madvise");
        }
        let [overwritten, unmapped, adopted] = areas[..] else {
            unreachable!("three")
        };
        fill(overwritten, 1);
        fill(unmapped, 2);
        fill(adopted, 3);
        for child in 1..=CHILDREN {
            stage.child(&format!("child {child}"), |stage| {
                unmapped.unmap(PAGES / 2, PAGES / 2);
                adopted.unmap(0, PAGES);
                let first = child * OWN;
                (first..first + OWN).for_each(|page| overwritten.mark(page, seed(9, page)));
                let own = Some(first);
                if child == CHILDREN {
                    // Two more generations: a child whose children have what it has no more.
                    for grandchild in 1..=2 {
                        stage.child(&format!("grandchild {grandchild}"), |_| {
                            move |findings: &mut Findings| check(findings, overwritten, (1, own), PAGES)
                        });
                    }
                    fill(overwritten, 5);
                    return Box::new(move |findings: &mut Findings| check(findings, overwritten, (5, None), PAGES))
                        as Box<dyn FnMut(&mut Findings)>;
                }
                Box::new(move |findings: &mut Findings| {
                    check(findings, overwritten, (1, own), PAGES);
                    check(findings, unmapped, (2, None), PAGES / 2);
                })
            });
        }
        orphans(stage, adopted, unmapped);
        fill(overwritten, 4);
        unmapped.unmap(0, PAGES);
        move |findings: &mut Findings| {
            check(findings, overwritten, (4, None), PAGES);
            check(findings, adopted, (3, None), PAGES);
        }
    })
}

/// Processes whose parent wrote other pages over its own, forked them and ended.
fn orphans(stage: &Stage, area: Mapping, unneeded: Mapping) {
    let names: Vec<String> = (1..=CHILDREN).map(|child| format!("orphan {child}")).collect();
    names.iter().for_each(|name| stage.expect(name));
    let parent = fork(|| {
        unneeded.unmap(0, PAGES);
        fill(area, 6);
        for name in &names {
            fork(|| {
                stage.act(name, |_| {
                    move |findings: &mut Findings| check(findings, area, (6, None), PAGES)
                })
            });
        }
    });
    let ended = victims::call::wait(parent, 0);
    assert!(ended.is_ok(), "reap the parent of orphans: {ended:?}");
    names.iter().for_each(|name| stage.wait_for_part(name));
}

fn seed(kind: usize, page: usize) -> u64 {
    (kind * 100_000 + page) as u64
}

fn fill(area: Mapping, kind: usize) {
    (0..PAGES).for_each(|page| area.mark(page, seed(kind, page)));
}

/// Compares the first `pages` pages, which are of one kind but for those from `own` on.
fn check(findings: &mut Findings, area: Mapping, (kind, own): (usize, Option<usize>), pages: usize) {
    if findings.sabotage() {
        // Writes what is there already: the page is the same and shared no more.
        (0..pages).for_each(|page| area.write(page * PAGE, &area.read(page * PAGE, 1)));
    }
    for page in 0..pages {
        let is_own = own.is_some_and(|first| (first..first + OWN).contains(&page));
        area.compare(findings, "area", page, seed(if is_own { 9 } else { kind }, page));
    }
    // What nobody shares: the root's new pages, and those of the child with children.
    let users = match kind {
        1 => CHILDREN - 1 + 2 + CHILDREN,
        2 => CHILDREN + 2,
        6 => CHILDREN,
        _ => return,
    };
    let (share, own) = (pages * PAGE / 1024 / users, own.map_or(0, |_| OWN * PAGE / 1024));
    let (limit, pss) = (share + share / 10 + own, kib_at(area.address, "Pss"));
    findings.that(
        pss <= limit,
        format!("{pss} KiB of area {kind} are this process's share, more than {limit}"),
    );
}
