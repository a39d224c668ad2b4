//! What is said of memory with madvise: not for children, not for dumps, wiped for children, huge pages, how it is read,
//! merged where it is the same; and memory that may be dropped (MAP_DROPPABLE).

use victims::{
    Findings,
    memory::{Mapping, flags_at},
    pattern, play,
    stage::fork,
};

const ADVICE: [(i32, &str); 8] = [
    (libc::MADV_DONTFORK, "dc"),
    (libc::MADV_DONTDUMP, "dd"),
    (libc::MADV_WIPEONFORK, "wf"),
    (libc::MADV_HUGEPAGE, "hg"),
    (libc::MADV_NOHUGEPAGE, "nh"),
    (libc::MADV_SEQUENTIAL, "sr"),
    (libc::MADV_RANDOM, "rr"),
    (libc::MADV_MERGEABLE, "mg"),
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
        let droppable = droppable();
        move |findings: &mut Findings| {
            if let Some(area) = droppable {
                let flags = flags_at(area.address);
                findings.that(
                    flags.iter().any(|word| word == "dp"),
                    format!("droppable memory has become {flags:?}"),
                );
                let page = area.read(4096, 4096);
                let whole = page == pattern::bytes(4096, 8) || page == [0; 4096];
                findings.that(whole, "droppable memory is neither kept nor dropped");
            }
            if findings.sabotage() {
                let _ = areas[0].0.advise(0, 4, libc::MADV_DOFORK);
            }
            for (area, flag, seed) in &areas {
                area.compare(findings, flag, 1, *seed);
                let flags = flags_at(area.address);
                findings.that(
                    flags.iter().any(|word| word == flag),
                    format!("{flag} is lost: {flags:?}"),
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

/// Linux 6.11.
fn droppable() -> Option<Mapping> {
    const MAP_DROPPABLE: i32 = 8;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, MAP_DROPPABLE | libc::MAP_ANONYMOUS);
    // SAFETY: the kernel chooses the address.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), 4 * 4096, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        println!("skipped MAP_DROPPABLE: {}", std::io::Error::last_os_error());
        return None;
    }
    let area = Mapping {
        address: address as usize,
        len: 4 * 4096,
    };
    area.mark(1, 8);
    Some(area)
}
