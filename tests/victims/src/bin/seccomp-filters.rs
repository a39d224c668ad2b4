//! Seccomp filters: stacked ones, of which the newest has the last word on an error; threads with others; a child that
//! inherits them; an unprivileged one. Each calls what is forbidden to it.

use std::sync::atomic::{AtomicU32, Ordering};
use victims::{
    Findings, Stage, Team, call, own, play,
    seccomp::{ALLOW, ERRNO, FLAG_LOG, FLAG_TSYNC, KILL, LOG, TRAP, install, no_new_privileges, on_call, only},
    stage::fork,
};

/// Calls that do no harm where they are allowed.
const FIRST: i64 = libc::SYS_sched_get_priority_max;
const SECOND: i64 = libc::SYS_sched_get_priority_min;
const THIRD: i64 = libc::SYS_getcpu;
const TRAPPED: i64 = libc::SYS_times;
const DEADLY: i64 = libc::SYS_sysinfo;
/// Calls that make a zombie of a child.
const END: [i64; 2] = [libc::SYS_exit_group, libc::SYS_rt_sigreturn];

thread_local! {
    static TRAPS: AtomicU32 = const { AtomicU32::new(0) };
}

extern "C" fn trapped(_: i32) {
    TRAPS.with(|count| count.fetch_add(1, Ordering::Relaxed));
}

fn main() {
    play(|stage| {
        // SAFETY: the handler only counts.
        unsafe { libc::signal(libc::SIGSYS, trapped as *const () as usize) };
        add(FIRST, ERRNO | 101, 0);
        // The newest filter's error counts, so the order shows.
        add(FIRST, ERRNO | 102, FLAG_LOG);
        stage.child("inherits", |stage| {
            add(SECOND, ERRNO | 103, 0);
            add(DEADLY, KILL, 0);
            member(stage)
        });
        stage.child("unprivileged", |stage| {
            no_new_privileges();
            // SAFETY: plain numbers.
            assert!(unsafe { libc::setresgid(1234, 1234, 1234) } == 0, "setresgid");
            // SAFETY: plain numbers.
            assert!(unsafe { libc::setresuid(4321, 4321, 4321) } == 0, "setresuid");
            add(THIRD, ERRNO | 104, 0);
            member(stage)
        });
        stage.child("large", |stage| {
            let short = on_call(THIRD, ERRNO | 109);
            let next = libc::sock_filter {
                code: (libc::BPF_JMP | libc::BPF_JA) as u16,
                jt: 0,
                jf: 0,
                k: 0,
            };
            let long = [&short[..1], &vec![next; 4096 - short.len()], &short[1..]].concat();
            install(&long, 0).expect("a long filter");
            member(stage)
        });
        stage.child("together", |_| {
            let mut team = Team::default();
            (0..2).for_each(|n| team.spawn(&format!("thread {n}"), grown));
            move |findings: &mut Findings| {
                team.check(findings);
                // Only threads with the very same filters can be given another one together.
                let filter = on_call(THIRD, ALLOW);
                findings.take("a filter for all threads", install(&filter, FLAG_TSYNC));
            }
        });
        let mut team = Team::default();
        team.spawn("no filter of its own", || thread(&[]));
        team.spawn("one", || thread(&[(SECOND, ERRNO | 105, 0)]));
        team.spawn("three", || {
            thread(&[(SECOND, ERRNO | 106, 0), (THIRD, LOG, FLAG_LOG), (TRAPPED, TRAP, 0)])
        });
        add(THIRD, ERRNO | 107, 0);
        let mut own = member(stage);
        move |findings: &mut Findings| {
            own(findings);
            team.check(findings);
        }
    })
}

fn add(number: i64, answer: u32, flags: usize) {
    install(&on_call(number, answer), flags).expect("a filter");
}

fn thread(filters: &[(i64, u32, usize)]) -> impl FnMut(&mut Findings) + use<> {
    for (number, answer, flags) in filters {
        add(*number, *answer, *flags);
    }
    watch()
}

/// A thread that gets one filter more each time it is checked.
fn grown() -> impl FnMut(&mut Findings) {
    let count = || own::status("Seccomp_filters").parse::<u32>().ok();
    let mut wanted = count();
    move |findings| {
        findings.same("filters", &wanted, &count());
        wanted = wanted.map(|count| count + 1);
    }
}

fn member(_: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let mut calls = watch();
    let before = ends();
    move |findings| {
        calls(findings);
        findings.same(
            "how children end that call what is deadly, or anything",
            &before,
            &ends(),
        );
    }
}

fn watch() -> impl FnMut(&mut Findings) + use<> {
    let before = answers();
    move |findings| {
        if findings.sabotage() {
            add(FIRST, ERRNO | 1, 0);
        }
        let now = answers();
        findings.same("answers of forbidden calls", &before, &now);
    }
}

fn traps() -> u32 {
    TRAPS.with(|count| count.load(Ordering::Relaxed))
}

/// What each call answers, how often SIGSYS came, what the kernel says.
fn answers() -> Vec<String> {
    let mut all = Vec::new();
    for number in [FIRST, SECOND, THIRD, TRAPPED] {
        let traps = traps();
        // SAFETY: calls that take numbers, or no address.
        let errno = unsafe { call::raw(number, &[0, 0, 0]) }
            .err()
            .and_then(|error| error.raw_os_error());
        let came = self::traps() - traps;
        let errno = if came == 0 { errno } else { None };
        all.push(format!("call {number}: {errno:?}, {came} traps"));
    }
    for key in ["Seccomp", "Seccomp_filters", "NoNewPrivs"] {
        all.push(format!("{key} {}", own::status(key)));
    }
    all
}

/// Wait statuses of children: one calls what may be deadly, one gets a filter that kills by its last answer.
fn ends() -> Vec<i32> {
    let deadly = fork(|| {
        // SAFETY: the address is refused.
        unsafe { libc::syscall(DEADLY, 0) };
    });
    let confined = fork(|| {
        install(&only(&END, KILL), 0).expect("a filter");
        // SAFETY: no arguments.
        unsafe { libc::syscall(libc::SYS_getpid) };
    });
    let fine = fork(|| install(&only(&END, ALLOW), 0).expect("a filter"));
    [deadly, confined, fine]
        .map(|pid| call::wait(pid, 0).expect("reap").1)
        .to_vec()
}
