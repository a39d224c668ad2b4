//! Tasks with state that is not carried, one child for each argument; all of them go on as if nobody had looked.

use std::sync::atomic::{AtomicU32, Ordering};
use victims::{
    Findings, call,
    memory::Mapping,
    play, seccomp,
    stage::{first, fork},
    timer::Timer,
    wait_until,
};

/// SECCOMP_RET_USER_NOTIF.
const USER_NOTIF: u32 = 0x7fc0_0000;

fn main() {
    play(|stage| {
        let kinds: Vec<&str> = (0..).map_while(|n| stage.arg(n)).collect();
        let children: Vec<Child> = kinds.iter().map(|kind| Child::start(kind)).collect();
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
    fn start(kind: &str) -> Self {
        let page = Mapping::anonymous(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: the page is mapped for good, and a zero is a good counter.
        let counter: &'static AtomicU32 = unsafe { &*(page.address as *const AtomicU32) };
        let name = format!("{kind}\0");
        let pid = fork(|| {
            call::prctl(libc::PR_SET_NAME, [name.as_ptr() as usize, 0, 0, 0]).expect("set the name");
            become_refused(kind);
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

fn become_refused(kind: &str) {
    match kind {
        "supervised" => seccomp::install(&seccomp::on_call(libc::SYS_sysinfo, USER_NOTIF), 0).expect("seccomp filter"),
        "landlock" => landlock(),
        "landlock-user" => {
            // SAFETY: plain numbers.
            assert!(unsafe { libc::setresgid(77, 77, 77) } == 0, "setresgid");
            // SAFETY: plain numbers.
            assert!(unsafe { libc::setresuid(78, 78, 78) } == 0, "setresuid");
            landlock();
        }
        "login" => std::fs::write("/proc/self/loginuid", "4711").expect("a login"),
        // From everywhere but nowhere.
        "dispatch" => drop(call::prctl(59, [1, 0x1000, 0x7fff_ffff_0000, 0]).expect("syscall user dispatch")),
        "pid-namespace" => {
            let below = first(|| rest());
            std::thread::spawn(move || {
                lead_children_to(below);
                rest()
            });
        }
        "pid-namespace-adopted" => {
            lead_children_to(first(|| rest()));
            fork(|| {
                let flags = libc::CLONE_NEWPID | libc::CLONE_PARENT | libc::SIGCHLD;
                // SAFETY: without a stack of its own it goes on with a copy of this one.
                match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
                    0 | 1.. => rest(),
                    _ => panic!("clone: {}", std::io::Error::last_os_error()),
                }
            });
        }
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
        "left-subreaper" => {
            adopt(0);
            subreaper(0);
        }
        "adopted-sharer" => adopt(libc::CLONE_FS),
        "timer-tells-ended" => in_a_thread(|| timer(0, libc::CLOCK_MONOTONIC, call::gettid())),
        "timer-of-ended-thread" => in_a_thread(|| timer(1, libc::CLOCK_THREAD_CPUTIME_ID, 0)),
        "timer-of-ended-process" => timer_of_ended_process(),
        _ => panic!("no such kind: {kind}"),
    }
}

/// A domain that forbids to write to files, and nothing else.
fn landlock() {
    seccomp::no_new_privileges();
    // What the domain is about: files, ports, scopes.
    let handled = [1_u64 << 1, 0, 0];
    let arguments = [&raw const handled as usize, 8, 0];
    // SAFETY: the first word is read.
    let rules = unsafe { call::raw(libc::SYS_landlock_create_ruleset, &arguments) }.expect("rules");
    // SAFETY: plain numbers.
    unsafe { call::raw(libc::SYS_landlock_restrict_self, &[rules as usize, 0]) }.expect("a domain");
    call::close(rules as i32);
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

/// Has children be born into the PID namespace of a process.
fn lead_children_to(pid: i32) {
    let file = std::fs::File::open(format!("/proc/{pid}/ns/pid")).expect("the namespace");
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWPID).expect("setns");
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

/// Makes the process a subreaper and has it adopt a grandchild from a session whose leader, its child, has ended. All
/// share `flags`.
fn adopt(flags: i32) {
    subreaper(1);
    let child = share(flags, || {
        // SAFETY: no arguments.
        unsafe { libc::setsid() };
        share(flags, || rest());
    });
    call::wait(child, 0).expect("reap");
}

fn subreaper(adopts: usize) {
    call::prctl(libc::PR_SET_CHILD_SUBREAPER, [adopts, 0, 0, 0]).expect("subreaper");
}

/// A child that shares `flags`, but not memory.
fn share(flags: i32, life: impl FnOnce()) -> i32 {
    // SAFETY: without a stack and CLONE_VM it is fork(2); there are no threads.
    let pid = unsafe { call::raw(libc::SYS_clone, &[(flags | libc::SIGCHLD) as usize, 0, 0, 0, 0]) };
    let pid = pid.expect("clone") as i32;
    if pid == 0 {
        life();
        // SAFETY: leaves without running the parent's exit handlers.
        unsafe { libc::_exit(0) };
    }
    pid
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
