//! Large mappings that nobody touched, or only here and there: they come back as large, and as empty.

use std::fs;
use victims::{
    Findings,
    memory::{Mapping, PAGE},
    play,
};

const GIB: usize = 1 << 30;

fn main() {
    play(|_| {
        let reserved = Mapping::anonymous(64 * GIB, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        let sparse = Mapping::anonymous(
            4 * GIB,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
        );
        let pages: Vec<usize> = (0..64).map(|n| n * 16_381 + 7).collect();
        pages.iter().for_each(|page| sparse.mark(*page, *page as u64));
        let resident = resident();
        move |findings: &mut Findings| {
            if findings.sabotage() {
                sparse.write(pages[9] * PAGE, b"!");
            }
            let now = crate::resident();
            findings.that(
                now < resident + (64 << 20),
                format!("resident memory grew from {resident} to {now} bytes"),
            );
            pages
                .iter()
                .for_each(|page| sparse.compare(findings, "sparse", *page, *page as u64));
            pages
                .iter()
                .for_each(|page| sparse.compare_zero(findings, "between", page + 1));
            let here = victims::own::maps().iter().any(|(start, end, rest)| {
                *start <= reserved.address && *end >= reserved.address + reserved.len && rest.starts_with("---p")
            });
            findings.that(here, "the reserved range is gone");
        }
    })
}

fn resident() -> usize {
    let text = fs::read_to_string("/proc/self/statm").expect("/proc/self/statm");
    let pages: usize = text
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .expect("the second word is a number");
    pages * PAGE
}
