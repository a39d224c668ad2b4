//! Pages that relatives share copy-on-write since a fork: they stay shared, so that the family needs no more memory than
//! before, also where a checkpoint lets it run on.

use std::fs;
use victims::{
    Findings,
    memory::{Mapping, PAGE},
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
    let (limit, pss) = (
        share + share / 4 + 2 * OWN * PAGE / 1024,
        proportional_kib(area.address),
    );
    findings.that(
        pss <= limit,
        format!("{pss} KiB are this process's share, more than {limit}"),
    );
}

/// `Pss:` of the mapping at an address.
fn proportional_kib(address: usize) -> usize {
    let text = fs::read_to_string("/proc/self/smaps").expect("/proc/self/smaps");
    let mut inside = false;
    for line in text.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let number = |digits| usize::from_str_radix(digits, 16).ok();
        if let Some((start, end)) = range.and_then(|(a, b)| Some((number(a)?, number(b)?))) {
            inside = start <= address && address < end;
        } else if let Some(value) = line.strip_prefix("Pss:").filter(|_| inside) {
            return value.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
        }
    }
    usize::MAX
}
