//! Tasks with state that is not carried, one child for each argument; all of them go on as if nobody had looked.

use std::sync::atomic::{AtomicU32, Ordering};
use victims::{Findings, Stage, call, memory::Mapping, play, stage::fork, timer::Timer, wait_until};

const PR_SET_SECCOMP: i32 = 22;

fn main() {
    play(|stage| {
        let kinds: Vec<&str> = (0..).map_while(|n| stage.arg(n)).collect();
        let children: Vec<Child> = kinds.iter().map(|kind| Child::start(stage, kind)).collect();
        move |findings: &mut Findings| {
            for child in &children {
                if findings.sabotage() {
                    findings.take("kill", call::kill(child.pid, libc::SIGKILL));
                    findings.take("reap", call::wait(child.pid, 0));
                }
                child.check(findings);
            }
            findings.that(!findings.sabotage() || !children.is_empty(), "no children to sabotage");
        }
    })
}

/// A child that counts.
struct Child {
    kind: String,
    pid: i32,
    counter: &'static AtomicU32,
}

impl Child {
    fn start(stage: &Stage, kind: &str) -> Self {
        let page = Mapping::anonymous(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: the page is mapped for good, and a zero is a good counter.
        let counter: &'static AtomicU32 = unsafe { &*(page.address as *const AtomicU32) };
        let name = format!("{kind}\0");
        let pid = fork(|| {
            call::prctl(libc::PR_SET_NAME, [name.as_ptr() as usize, 0, 0, 0]).expect("set the name");
            become_refused(stage, kind, counter);
            count(counter)
        });
        let child = Self {
            kind: kind.to_owned(),
            pid,
            counter,
        };
        assert!(child.counts(), "{kind} lives");
        child
    }

    fn counts(&self) -> bool {
        let before = self.counter.load(Ordering::Relaxed);
        let gone = || call::wait(self.pid, libc::WNOHANG).map_or(true, |(pid, _)| pid != 0);
        wait_until(|| self.counter.load(Ordering::Relaxed) > before + 2 || gone())
            && self.counter.load(Ordering::Relaxed) > before + 2
    }

    fn check(&self, findings: &mut Findings) {
        findings.that(self.counts(), format!("{} does not go on", self.kind));
    }
}

/// Needs no calls but nanosleep.
fn count(counter: &AtomicU32) -> ! {
    loop {
        counter.fetch_add(1, Ordering::Relaxed);
        nap();
    }
}

fn nap() {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 2_000_000,
    };
    // SAFETY: the time is read.
    unsafe { libc::syscall(libc::SYS_nanosleep, &raw const time, 0) };
}

fn become_refused(_: &Stage, kind: &str, counter: &'static AtomicU32) {
    match kind {
        "seccomp" => seccomp(),
        "seccomp-strict" => {
            call::prctl(PR_SET_SECCOMP, [1, 0, 0, 0]).expect("strict mode");
            // Strict mode knows no sleep.
            loop {
                counter.fetch_add(1, Ordering::Relaxed);
                for _ in 0..100_000 {
                    std::hint::spin_loop();
                }
            }
        }
        "dispatch" => dispatch(counter),
        "pid-namespace" => {
            unshare(libc::CLONE_NEWPID);
            fork(|| rest());
        }
        "time-namespace" => {
            unshare(libc::CLONE_NEWTIME);
            fork(|| rest());
        }
        "uts-namespace" => unshare(libc::CLONE_NEWUTS),
        "files" => siblings(libc::CLONE_FILES),
        "fs" => siblings(libc::CLONE_FS),
        "vm" => siblings(libc::CLONE_VM),
        "sighand" => siblings(libc::CLONE_VM | libc::CLONE_SIGHAND),
        "vfork" => {
            // The thread that waits is not the one that counts.
            std::thread::spawn(|| clone(libc::CLONE_VM | libc::CLONE_VFORK));
        }
        "traced" => {
            let child = fork(|| rest());
            // SAFETY: no memory is touched.
            let status = unsafe { libc::ptrace(libc::PTRACE_SEIZE, child, 0, 0) };
            assert!(status == 0, "seize");
        }
        "thread-directory" => {
            std::thread::spawn(|| {
                unshare(libc::CLONE_FS);
                rest()
            });
        }
        other => more(other),
    }
}

/// Switches of one call each.
fn more(kind: &str) {
    let set = |option: i32, args: [usize; 4]| {
        call::prctl(option, args).expect(kind);
    };
    match kind {
        "tsc" => set(libc::PR_SET_TSC, [libc::PR_TSC_SIGSEGV as usize, 0, 0, 0]),
        "mdwe" => set(65, [1, 0, 0, 0]),
        "machine-check" => set(libc::PR_MCE_KILL, [1, 1, 0, 0]),
        "merge" => set(67, [1, 0, 0, 0]),
        "autogroup" => {
            // SAFETY: no arguments.
            unsafe { libc::setsid() };
            std::fs::write("/proc/self/autogroup", "5").expect(kind);
        }
        "huge-pages" => set(41, [1, 2, 0, 0]),
        "timer-tells-ended" => in_a_thread(|| timer(0, libc::CLOCK_MONOTONIC, call::gettid())),
        "timer-of-ended-thread" => in_a_thread(|| timer(1, libc::CLOCK_THREAD_CPUTIME_ID, 0)),
        "timer-of-ended-process" => timer_of_ended_process(),
        _ => panic!("no such kind: {kind}"),
    }
}

fn rest() -> ! {
    loop {
        nap();
    }
}

fn unshare(flags: i32) {
    // SAFETY: a number.
    assert!(unsafe { libc::unshare(flags) } == 0, "unshare");
}

extern "C" fn cloned(_: *mut libc::c_void) -> i32 {
    rest()
}

/// A process that shares something with its parent.
fn clone(flags: i32) {
    let stack = Mapping::private(65536);
    let top = (stack.address + stack.len) as *mut libc::c_void;
    // SAFETY: a stack of its own; the child sleeps only.
    let pid = unsafe { libc::clone(cloned, top, flags | libc::SIGCHLD, std::ptr::null_mut()) };
    assert!(pid > 0, "clone");
}

/// Two children that share something which their parent does not.
fn siblings(flags: i32) {
    fork(|| {
        clone(flags | libc::CLONE_PARENT);
        rest()
    });
}

/// A timer with this id.
fn timer(number: i32, clock: i32, target: i32) {
    for _ in 0..number {
        Timer::signalling(libc::CLOCK_MONOTONIC, libc::SIGUSR1, 0).delete();
    }
    let notify = if target == 0 {
        libc::SIGEV_SIGNAL
    } else {
        libc::SIGEV_THREAD_ID
    };
    let timer = Timer::make(clock, notify, libc::SIGUSR1, 0, target).expect("a timer");
    assert_eq!(timer, Timer(number));
}

/// Runs in a thread that has ended then.
fn in_a_thread(act: fn()) {
    std::thread::spawn(act).join().expect("a thread");
}

/// A clock of the processor time of a process that has ended then.
fn timer_of_ended_process() {
    let child = fork(|| rest());
    timer(2, (!child << 3) | 2, 0);
    call::kill(child, libc::SIGKILL).expect("kill");
    call::wait(child, 0).expect("reap");
}

/// A filter that kills at every call but nanosleep and what the kernel continues it with.
fn seccomp() {
    let filter = |code: u32, k: u32, jumps: [u8; 2]| libc::sock_filter {
        code: code as u16,
        jt: jumps[0],
        jf: jumps[1],
        k,
    };
    let is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let program = [
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, [0, 0]),
        filter(is, libc::SYS_nanosleep as u32, [2, 0]),
        filter(is, libc::SYS_restart_syscall as u32, [1, 0]),
        filter(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_KILL_PROCESS, [0, 0]),
        filter(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, [0, 0]),
    ];
    let list = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    call::prctl(PR_SET_SECCOMP, [2, &raw const list as usize, 0, 0]).expect("seccomp filter");
}

/// System calls from outside of nanosleep's own code are sent back as signals.
fn dispatch(counter: &AtomicU32) -> ! {
    static SELECTOR: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);
    let selector = SELECTOR.as_ptr() as usize;
    call::prctl(59, [1, 0, 0, selector]).expect("syscall user dispatch");
    loop {
        counter.fetch_add(1, Ordering::Relaxed);
        // While it sleeps in a loop of its own, every call would be a SIGSYS.
        SELECTOR.store(1, Ordering::Relaxed);
        for _ in 0..1_000_000 {
            std::hint::spin_loop();
        }
        SELECTOR.store(0, Ordering::Relaxed);
        nap();
    }
}
