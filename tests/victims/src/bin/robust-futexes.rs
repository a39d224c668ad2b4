//! What a thread leaves when it ends: locks of its robust list, its tid address; and what the kernel writes for it: the
//! rseq area, and the base of its thread-local memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
};
use victims::{Findings, Team, arch, call, play, wait_until};

const OWNER_DIED: u32 = 0x4000_0000;
const WAITERS: u32 = 0x8000_0000;

/// A lock of the C library, robust, so that the end of its owner shows.
struct Lock(libc::pthread_mutex_t);

impl Lock {
    fn leaked(inherits: bool) -> &'static Self {
        // SAFETY: zeros are overwritten by the initialisation.
        let mut attributes: libc::pthread_mutexattr_t = unsafe { std::mem::zeroed() };
        let place = &raw mut attributes;
        // SAFETY: room for the attributes.
        unsafe { libc::pthread_mutexattr_init(place) };
        // SAFETY: initialised attributes.
        unsafe { libc::pthread_mutexattr_setrobust(place, libc::PTHREAD_MUTEX_ROBUST) };
        // SAFETY: initialised attributes.
        unsafe { libc::pthread_mutexattr_setprotocol(place, if inherits { libc::PTHREAD_PRIO_INHERIT } else { 0 }) };
        // SAFETY: zeros are overwritten by the initialisation.
        let lock = Box::leak(Box::new(Self(unsafe { std::mem::zeroed() })));
        // SAFETY: memory that stays, initialised attributes.
        let status = unsafe { libc::pthread_mutex_init(&raw mut lock.0, place) };
        assert_eq!(status, 0);
        lock
    }

    fn place(&self) -> *mut libc::pthread_mutex_t {
        (&raw const self.0).cast_mut()
    }

    fn take(&self) -> i32 {
        // SAFETY: an initialised lock.
        unsafe { libc::pthread_mutex_lock(self.place()) }
    }

    fn give_back(&self, mend: bool) {
        if mend {
            // SAFETY: a lock whose owner has died and that this thread has taken.
            unsafe { libc::pthread_mutex_consistent(self.place()) };
        }
        // SAFETY: a lock that this thread holds.
        unsafe { libc::pthread_mutex_unlock(self.place()) };
    }
}

/// A thread that holds locks until it is told to end.
struct Owner {
    locks: Vec<&'static Lock>,
    /// Somebody who waits for the first of them.
    waiter: JoinHandle<i32>,
    end: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Owner {
    fn start() -> Self {
        let locks: Vec<&'static Lock> = [false, false, true].into_iter().map(Lock::leaked).collect();
        let (held, end) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (mine, seen, ended) = (locks.clone(), Arc::clone(&held), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            for lock in mine {
                assert_eq!(lock.take(), 0);
            }
            seen.store(1, Ordering::Relaxed);
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        });
        assert!(wait_until(|| held.load(Ordering::Relaxed) == 1));
        let first = locks[0];
        let waiter = std::thread::spawn(move || {
            let status = first.take();
            first.give_back(status == libc::EOWNERDEAD);
            status
        });
        // The word of a lock that somebody waits for says so.
        // SAFETY: the first word of the lock is its futex, in memory that stays.
        let word = unsafe { &*first.place().cast::<AtomicU32>() };
        assert!(wait_until(|| word.load(Ordering::Relaxed) & WAITERS != 0));
        Self {
            locks,
            waiter,
            end,
            thread,
        }
    }

    fn check(self, findings: &mut Findings) {
        self.end.store(true, Ordering::Relaxed);
        findings.that(self.thread.join().is_ok(), "the owner of the locks does not end");
        let waited = wait_until(|| self.waiter.is_finished());
        findings.that(waited, "the end of the owner wakes nobody");
        if waited {
            findings.same(
                "what the waiter got",
                &libc::EOWNERDEAD,
                &self.waiter.join().unwrap_or(-1),
            );
        }
        for (n, lock) in self.locks.iter().enumerate().skip(1) {
            let status = lock.take();
            findings.same(format!("what lock {n} says of its owner"), &libc::EOWNERDEAD, &status);
            lock.give_back(status == libc::EOWNERDEAD);
        }
    }
}

fn main() {
    play(|_| {
        let mut owner = Some(Owner::start());
        let mut team = Team::default();
        for n in 0..8 {
            team.spawn(&format!("thread {n}"), move || member(n));
        }
        let mut own = member(99);
        move |findings: &mut Findings| {
            own(findings);
            team.check(findings);
            new_thread(findings);
            if let Some(owner) = owner.take() {
                owner.check(findings);
            }
            owner = Some(Owner::start());
        }
    })
}

/// A thread whose head of the robust list, tid address, thread-local bases and rseq area are as they were.
fn member(n: usize) -> impl FnMut(&mut Findings) {
    let gs = 0x1000_0000 + n * 4096;
    set_gs(gs);
    let before = (
        robust_list(),
        tid_address(),
        base(0x1003),
        base(0x1004),
        arch::rseq_area(),
    );
    move |findings| {
        if findings.sabotage() {
            set_gs(0);
        }
        let now = (
            robust_list(),
            tid_address(),
            base(0x1003),
            base(0x1004),
            arch::rseq_area(),
        );
        findings.same("robust list, tid address, fs, gs, rseq", &before, &now);
        for cpu in 0..2 {
            run_on(cpu);
            // SAFETY: no arguments.
            let told = unsafe { libc::sched_getcpu() };
            let noted = arch::rseq_area().map(|area| {
                // SAFETY: the area that the C library registered for this thread; cpu_id is its second word.
                unsafe { std::ptr::read_volatile((area as *const u32).add(1)) }
            });
            findings.same("processor, as rseq notes it", &noted, &noted.map(|_| told as u32));
            findings.same("processor", &cpu, &(told as usize));
        }
        run_anywhere();
    }
}

/// A thread made after the round trip: its list is walked, too.
fn new_thread(findings: &mut Findings) {
    let word: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
    let lock = Lock::leaked(false);
    let thread = std::thread::spawn(move || {
        lock.take();
        // SAFETY: the first word of the lock is its futex.
        let futex = unsafe { &*lock.place().cast::<AtomicU32>() };
        word.store(futex.load(Ordering::Relaxed), Ordering::Relaxed);
        word.load(Ordering::Relaxed) as i32 == call::gettid()
    });
    findings.same("a lock names its owner", &Some(true), &thread.join().ok());
    // SAFETY: the first word of the lock is its futex.
    let now = unsafe { &*lock.place().cast::<AtomicU32>() }.load(Ordering::Relaxed);
    findings.that(
        now & OWNER_DIED != 0,
        format!("a thread ended and its lock says {now:#x}"),
    );
}

fn robust_list() -> (usize, usize) {
    let (mut head, mut size) = (0_usize, 0_usize);
    let args = [0, &raw mut head as usize, &raw mut size as usize];
    // SAFETY: room for both answers.
    unsafe { call::raw(libc::SYS_get_robust_list, &args) }.expect("get_robust_list");
    (head, size)
}

fn tid_address() -> usize {
    let mut address = 0_usize;
    call::prctl(libc::PR_GET_TID_ADDRESS, [&raw mut address as usize, 0, 0, 0]).expect("tid address");
    address
}

/// arch_prctl: 0x1003 for fs, 0x1004 for gs.
fn base(which: usize) -> usize {
    let mut address = 0_usize;
    // SAFETY: room for the answer.
    unsafe { call::raw(libc::SYS_arch_prctl, &[which, &raw mut address as usize]) }.expect("arch_prctl");
    address
}

fn set_gs(address: usize) {
    // SAFETY: nothing of this program uses gs.
    unsafe { call::raw(libc::SYS_arch_prctl, &[0x1001, address]) }.expect("arch_prctl");
}

fn run_on(cpu: usize) {
    let set = 1_u64 << cpu;
    // SAFETY: eight bytes are read.
    unsafe { call::raw(libc::SYS_sched_setaffinity, &[0, 8, &raw const set as usize]) }.expect("affinity");
}

fn run_anywhere() {
    let set = !0_u64;
    // SAFETY: eight bytes are read.
    unsafe { call::raw(libc::SYS_sched_setaffinity, &[0, 8, &raw const set as usize]) }.expect("affinity");
}
