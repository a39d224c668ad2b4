//! Guard regions (MADV_GUARD_INSTALL): which pages fault, and that their neighbours hold what they held; in memory that
//! relatives share, in shared memory, and under a lock.

use victims::{
    Findings, call,
    memory::{Mapping, PAGE},
    play,
};

const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;
const PAGES: usize = 12;

fn main() {
    play(|stage| {
        let own = guarded(libc::MAP_PRIVATE, &[2, 5, 6, 11]).expect("guards in private memory");
        // Linux 6.15.
        let shared = guarded(libc::MAP_SHARED, &[0, 7]);
        let locked = guarded(libc::MAP_PRIVATE, &[3]).expect("guards in private memory");
        // SAFETY: a mapping of our own. It says that not all of it can be had, and locks it all the same.
        unsafe { libc::mlock(locked.mapping.address as *const _, locked.mapping.len) };
        let kept = own.clone();
        stage.child("child", move |_| {
            let mut changed = own;
            changed
                .mapping
                .advise(5, 1, MADV_GUARD_REMOVE)
                .expect("MADV_GUARD_REMOVE");
            changed.mapping.mark(5, 5);
            changed
                .mapping
                .advise(8, 1, MADV_GUARD_INSTALL)
                .expect("MADV_GUARD_INSTALL");
            changed.guards = vec![2, 6, 8, 11];
            move |findings: &mut Findings| changed.check(findings, "guards of the child")
        });
        move |findings: &mut Findings| {
            if findings.sabotage() {
                let _ = kept.mapping.advise(5, 1, MADV_GUARD_REMOVE);
            }
            kept.check(findings, "guards");
            locked.check(findings, "guards under a lock");
            match &shared {
                Ok(shared) => shared.check(findings, "guards of shared memory"),
                Err(error) => println!("skipped guards of shared memory: {error}"),
            }
        }
    })
}

#[derive(Clone)]
struct Guarded {
    mapping: Mapping,
    guards: Vec<usize>,
}

fn guarded(flags: i32, guards: &[usize]) -> std::io::Result<Guarded> {
    let mapping = Mapping::anonymous(PAGES * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags);
    for page in 0..PAGES {
        mapping.mark(page, page as u64);
    }
    for page in guards {
        mapping.advise(*page, 1, MADV_GUARD_INSTALL)?;
    }
    let guards = guards.to_vec();
    Ok(Guarded { mapping, guards })
}

impl Guarded {
    fn check(&self, findings: &mut Findings, what: &str) {
        for page in 0..PAGES {
            let fault = faults(self.mapping.address + page * PAGE);
            let wanted = self.guards.contains(&page);
            findings.same(format!("{what}: page {page} faults"), &wanted, &fault);
            if !fault && !wanted {
                self.mapping.compare(findings, what, page, page as u64);
            }
        }
    }
}

/// Whether the kernel finds nothing to read there.
fn faults(address: usize) -> bool {
    let [reader, writer] = call::pipe(0);
    // SAFETY: the kernel reads the byte, or says that it can't.
    let taken = unsafe { call::raw(libc::SYS_write, &[writer as usize, address, 1]) };
    call::close(reader);
    call::close(writer);
    taken.is_err()
}
