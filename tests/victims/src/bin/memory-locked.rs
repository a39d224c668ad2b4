//! Locked memory: mlock; mlock2 with MLOCK_ONFAULT; memory that can't be touched.

use victims::{
    Findings, call,
    memory::{Mapping, PAGE, locks_at},
    play,
};

fn main() {
    play(|_| {
        let areas = [
            ("all of it", 0, libc::PROT_READ | libc::PROT_WRITE),
            ("once touched", libc::MLOCK_ONFAULT, libc::PROT_READ | libc::PROT_WRITE),
            ("for nobody", libc::MLOCK_ONFAULT, libc::PROT_NONE),
        ]
        .map(|(what, flags, protection)| {
            let area = Mapping::private(64 * PAGE);
            area.mark(1, 1);
            area.protect(0, 64, protection);
            // SAFETY: a mapping of our own.
            let locked = unsafe { call::raw(libc::SYS_mlock2, &[area.address, area.len, flags as usize]) };
            locked.expect("mlock2");
            // Keeps the kernel from joining neighbours.
            let _ = Mapping::anonymous(PAGE, libc::PROT_NONE, libc::MAP_SHARED);
            (what, area, protection, locks_at(area.address), resident(area))
        });
        move |findings: &mut Findings| {
            if findings.sabotage() {
                // SAFETY: a mapping of our own.
                unsafe { libc::munlock(areas[1].1.address as *const _, PAGE) };
            }
            for (what, area, protection, flags, pages) in &areas {
                findings.same(format!("locks of memory locked {what}"), flags, &locks_at(area.address));
                findings.same(format!("pages of memory locked {what}"), pages, &resident(*area));
                if *protection != libc::PROT_NONE {
                    area.compare(findings, what, 1, 1);
                }
            }
        }
    })
}

/// How many pages are in memory.
fn resident(area: Mapping) -> usize {
    let mut pages = vec![0u8; area.len / PAGE];
    // SAFETY: room for a byte a page.
    let status = unsafe { libc::mincore(area.address as *mut _, area.len, pages.as_mut_ptr()) };
    assert_eq!(status, 0, "mincore");
    pages.iter().filter(|page| **page & 1 != 0).count()
}
