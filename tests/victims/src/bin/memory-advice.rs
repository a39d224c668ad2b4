//! What is said of memory with madvise and mlock: not for children, not for dumps, wiped for children, locked, huge pages.

use std::fs;
use victims::{Findings, memory::Mapping, play, stage::fork};

const ADVICE: [(i32, &str); 6] = [
    (libc::MADV_DONTFORK, "dc"),
    (libc::MADV_DONTDUMP, "dd"),
    (libc::MADV_WIPEONFORK, "wf"),
    (libc::MADV_HUGEPAGE, "hg"),
    (libc::MADV_NOHUGEPAGE, "nh"),
    (libc::MADV_SEQUENTIAL, "sr"),
];

fn main() {
    play(|_| {
        let mut areas = Vec::new();
        for (advice, flag) in ADVICE {
            let area = Mapping::private(4 * 4096);
            area.mark(1, advice as u64);
            match area.advise(0, 4, advice) {
                Ok(()) => areas.push((area, flag, advice as u64)),
                Err(error) => println!("skipped {flag}: {error}"),
            }
            // Keeps the kernel from joining neighbours.
            let _ = Mapping::anonymous(4096, libc::PROT_NONE, libc::MAP_PRIVATE);
        }
        let locked = Mapping::private(4 * 4096);
        locked.mark(1, 1);
        // SAFETY: a mapping of our own.
        let status = unsafe { libc::mlock(locked.address as *const _, locked.len) };
        assert_eq!(status, 0, "mlock");
        areas.push((locked, "lo", 1));
        move |findings: &mut Findings| {
            if findings.sabotage() {
                let _ = areas[0].0.advise(0, 4, libc::MADV_DOFORK);
            }
            for (area, flag, seed) in &areas {
                area.compare(findings, flag, 1, *seed);
                let flags = flags_at(area.address);
                findings.that(
                    flags.split(' ').any(|word| word == *flag),
                    format!("{flag} is lost: {flags}"),
                );
            }
            let wiped = areas.iter().find(|(_, flag, _)| *flag == "wf").map(|(area, ..)| *area);
            let Some(wiped) = wiped else { return };
            let child = fork(|| assert_eq!(wiped.read(4096, 4096), [0; 4096]));
            let ended = victims::call::wait(child, 0).map(|(_, status)| status);
            findings.that(matches!(ended, Ok(0)), "memory that is wiped for children was not");
        }
    })
}

fn flags_at(address: usize) -> String {
    let text = fs::read_to_string("/proc/self/smaps").expect("/proc/self/smaps");
    let mut inside = false;
    for line in text.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        if let Some(range) =
            range.and_then(|(a, b)| Some((usize::from_str_radix(a, 16).ok()?, usize::from_str_radix(b, 16).ok()?)))
        {
            inside = range.0 <= address && address < range.1;
        } else if let Some(flags) = line.strip_prefix("VmFlags: ").filter(|_| inside) {
            return flags.to_owned();
        }
    }
    String::new()
}
