//! Pages that relatives share copy-on-write since a fork: they stay shared, so that the family needs no more memory than
//! before, also where a checkpoint lets it run on.

use victims::{
    Findings,
    memory::{Mapping, PAGE, kib_at},
    play,
};

const PAGES: usize = 2048;
const CHILDREN: usize = 3;
/// Each child makes so many pages its own.
const OWN: usize = 64;

fn main() {
    play(|stage| {
        let area = Mapping::private(PAGES * PAGE);
        // Huge pages are split or collapsed when the kernel likes.
        area.advise(0, PAGES, libc::MADV_NOHUGEPAGE).expect("madvise");
        (0..PAGES).for_each(|page| area.mark(page, page as u64));
        for child in 1..=CHILDREN {
            stage.child(&format!("child {child}"), |_| {
                let first = child * OWN;
                (first..first + OWN).for_each(|page| area.mark(page, 5000 + page as u64));
                move |findings: &mut Findings| check(findings, area, Some(first))
            });
        }
        move |findings: &mut Findings| check(findings, area, None)
    })
}

fn check(findings: &mut Findings, area: Mapping, own: Option<usize>) {
    if findings.sabotage() {
        // Writes what is there already: the page is the same and shared no more.
        (0..PAGES).for_each(|page| area.write(page * PAGE, &area.read(page * PAGE, 1)));
    }
    for page in 0..PAGES {
        let is_own = own.is_some_and(|first| (first..first + OWN).contains(&page));
        let seed = if is_own { 5000 + page as u64 } else { page as u64 };
        area.compare(findings, "area", page, seed);
    }
    let share = PAGES * PAGE / 1024 / (CHILDREN + 1);
    let (limit, pss) = (share + share / 4 + 2 * OWN * PAGE / 1024, kib_at(area.address, "Pss"));
    findings.that(
        pss <= limit,
        format!("{pss} KiB are this process's share, more than {limit}"),
    );
}
