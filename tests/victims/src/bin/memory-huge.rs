//! Transparent huge pages: memory that was made of them is again, and where there were small pages no huge one comes to be,
//! which would take more memory than before.

use std::fs;
use victims::{
    Findings,
    memory::{Mapping, PAGE, kib_at},
    play,
};

const HUGE: usize = 2 << 20;
const COUNT: usize = 8;

fn main() {
    play(|stage| {
        let large = area();
        advise(large, libc::MADV_HUGEPAGE);
        (0..COUNT * HUGE / PAGE).for_each(|page| large.mark(page, page as u64));
        // One small page in each place of a huge one, and advice only afterwards.
        let sparse = area();
        advise(sparse, libc::MADV_NOHUGEPAGE);
        (0..COUNT).for_each(|n| sparse.mark(n * HUGE / PAGE + n, n as u64));
        advise(sparse, libc::MADV_HUGEPAGE);
        let before = [large, sparse].map(|area| kib(area.address));
        stage.child("child", |_| {
            move |findings: &mut Findings| {
                (0..COUNT * HUGE / PAGE).for_each(|page| large.compare(findings, "inherited", page, page as u64));
                findings.same("huge pages inherited (KiB)", &before[0].0, &kib(large.address).0);
            }
        });
        let collapsed = collapsed();
        if before[0].0 == 0 {
            println!("no huge pages here");
        }
        move |findings: &mut Findings| {
            if findings.sabotage() {
                advise(large, libc::MADV_DONTNEED);
            }
            (0..COUNT * HUGE / PAGE).for_each(|page| large.compare(findings, "large", page, page as u64));
            (0..COUNT).for_each(|n| sparse.compare(findings, "sparse", n * HUGE / PAGE + n, n as u64));
            findings.same("huge and all pages of large (KiB)", &before[0], &kib(large.address));
            let now = kib(sparse.address);
            // The kernel itself makes huge pages of small ones, when it likes.
            if crate::collapsed() == collapsed {
                findings.same("huge and all pages of sparse (KiB)", &before[1], &now);
            }
        }
    })
}

/// Room for huge pages that begins with one.
fn area() -> Mapping {
    let room = Mapping::private((COUNT + 1) * HUGE);
    let before = room.address.next_multiple_of(HUGE) - room.address;
    if before > 0 {
        room.unmap(0, before / PAGE);
    }
    // What is left behind it is never empty and keeps two such places apart.
    room.unmap((before + COUNT * HUGE) / PAGE, (HUGE - before) / PAGE);
    Mapping {
        address: room.address + before,
        len: COUNT * HUGE,
    }
}

fn advise(area: Mapping, advice: i32) {
    area.advise(0, area.len / PAGE, advice).expect("madvise");
}

/// How often the kernel has made a huge page of small ones since it started.
fn collapsed() -> Option<String> {
    let text = fs::read_to_string("/proc/vmstat").expect("/proc/vmstat");
    let line = text.lines().find(|line| line.starts_with("thp_collapse_alloc "));
    line.map(str::to_owned)
}

/// Of the mapping at an address: KiB in huge pages, and in all.
fn kib(address: usize) -> (usize, usize) {
    (kib_at(address, "AnonHugePages"), kib_at(address, "Rss"))
}
