//! Processes that share with their parents what usually only threads share: memory, descriptors, directories and umask,
//! signal actions, each alone and together, over two generations.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use victims::{Findings, Stage, call, memory::Mapping, play, stage::wait_until};

const KINDS: [(&str, i32, usize); 4] = [
    ("memory", libc::CLONE_VM, 1),
    ("descriptors", libc::CLONE_FILES, 2),
    ("directories", libc::CLONE_FS, 3),
    ("actions", libc::CLONE_SIGHAND, 4),
];
/// A number that the members of one table take turns with.
const NUMBER: i32 = 700;

/// Naps that those with the same memory have had, by their place.
static NAPS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
/// Child of a child with the same memory, which has memory of its own.
static GRANDCHILD: AtomicI32 = AtomicI32::new(0);

/// Whom the process is compared with, and what they share.
type Relation = (i32, i32, i32);

fn main() {
    play(|stage| {
        let own = std::process::id() as i32;
        let mut relations: Vec<Relation> = Vec::new();
        let files = part(stage, "descriptors", libc::CLONE_FILES, |stage| {
            let parent = std::process::id() as i32;
            let child = part(stage, "descriptors too", libc::CLONE_FILES, |_| |_: &mut Findings| ());
            move |findings: &mut Findings| compare(findings, &[(parent, child, libc::CLONE_FILES)])
        });
        relations.push((own, files, libc::CLONE_FILES));
        let both = libc::CLONE_FILES | libc::CLONE_FS;
        relations.push((own, part(stage, "directories", both, |_| |_: &mut Findings| ()), both));
        for (place, flags) in [
            libc::CLONE_VM,
            libc::CLONE_VM | libc::CLONE_SIGHAND,
            libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_FILES | libc::CLONE_FS,
        ]
        .into_iter()
        .enumerate()
        {
            relations.push((own, with_memory(place, flags), flags));
        }
        assert!(wait_until(|| GRANDCHILD.load(Ordering::SeqCst) > 0), "no grandchild");
        relations.push((own, GRANDCHILD.load(Ordering::SeqCst), 0));
        move |findings| {
            if findings.sabotage() {
                // SAFETY: a number.
                unsafe { libc::unshare(libc::CLONE_FILES) };
            }
            compare(findings, &relations);
            takes_turns(findings);
            let before: Vec<u64> = NAPS.iter().map(|naps| naps.load(Ordering::SeqCst)).collect();
            for (place, before) in before.iter().enumerate().take(3) {
                let naps = || NAPS[place].load(Ordering::SeqCst);
                findings.that(wait_until(|| naps() > *before), format!("task {place} naps no more"));
            }
        }
    })
}

/// What one opens in a shared table another one sees.
fn takes_turns(findings: &mut Findings) {
    // SAFETY: plain numbers.
    let is_open = || unsafe { libc::fcntl(NUMBER, libc::F_GETFD) } >= 0;
    // SAFETY: as above.
    findings.that(unsafe { libc::dup2(2, NUMBER) } == NUMBER, "dup2");
    // The third one with the same memory closes it.
    NAPS[3].store(1, Ordering::SeqCst);
    findings.that(wait_until(|| NAPS[3].load(Ordering::SeqCst) != 1), "nobody took it");
    findings.same("closed by another", &0, &NAPS[3].swap(0, Ordering::SeqCst));
    findings.that(!is_open(), "a closed descriptor is open");
}

fn compare(findings: &mut Findings, relations: &[Relation]) {
    for &(one, other, flags) in relations {
        for (name, flag, kind) in KINDS {
            let args = [one as usize, other as usize, kind, 0, 0];
            // SAFETY: plain numbers.
            let order = unsafe { call::raw(libc::SYS_kcmp, &args) };
            if let Some(order) = findings.take("kcmp", order) {
                findings.same(
                    format!("{name} of {one} and {other}"),
                    &(flags & flag != 0),
                    &(order == 0),
                );
            }
        }
    }
}

/// A child that plays a part and shares `flags`, but not memory.
fn part<C: FnMut(&mut Findings)>(stage: &Stage, name: &str, flags: i32, build: impl FnOnce(&Stage) -> C) -> i32 {
    stage.expect(name);
    let args = [(flags | libc::SIGCHLD) as usize, 0, 0, 0, 0];
    // SAFETY: without a stack and CLONE_VM it is fork(2); there are no threads.
    let pid = unsafe { call::raw(libc::SYS_clone, &args) }.expect("clone") as i32;
    if pid == 0 {
        stage.act(name, build);
    }
    stage.wait_for_part(name);
    pid
}

/// A child with the same memory.
fn with_memory(place: usize, flags: i32) -> i32 {
    let stack = Mapping::private(65536);
    let top = (stack.address + stack.len) as *mut libc::c_void;
    // SAFETY: a stack of its own; the child uses nothing of the thread whose thread-local storage it has.
    let pid = unsafe { libc::clone(cloned, top, flags | libc::SIGCHLD, place as *mut libc::c_void) };
    assert!(pid > 0, "clone");
    pid
}

extern "C" fn cloned(place: *mut libc::c_void) -> i32 {
    let place = place as usize;
    if place == 0 {
        // SAFETY: fork(2) without what libc does around it.
        let pid = unsafe { call::raw(libc::SYS_clone, &[libc::SIGCHLD as usize, 0, 0, 0, 0]) };
        match pid {
            Ok(0) => loop {
                nap();
            },
            Ok(pid) => GRANDCHILD.store(pid as i32, Ordering::SeqCst),
            Err(_) => GRANDCHILD.store(-1, Ordering::SeqCst),
        }
    }
    loop {
        nap();
        NAPS[place].fetch_add(1, Ordering::SeqCst);
        if place == 2 && NAPS[3].load(Ordering::SeqCst) == 1 {
            // SAFETY: a number.
            let closed = unsafe { call::raw(libc::SYS_close, &[NUMBER as usize]) };
            NAPS[3].store(if closed.is_ok() { 0 } else { 2 }, Ordering::SeqCst);
        }
    }
}

fn nap() {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 2_000_000,
    };
    // SAFETY: a valid time, and nowhere to put the rest.
    let _ = unsafe { call::raw(libc::SYS_nanosleep, &[&raw const time as usize, 0]) };
}
