//! A process that catches every signal gets none; its child that is stopped and catches them stays stopped; and signals
//! wait although the limit on them is none any more.

use std::sync::atomic::{AtomicU64, Ordering};
use victims::{Findings, call, own, play, stage::fork, wait_until};

/// Signals that came, as a mask.
static CAME: AtomicU64 = AtomicU64::new(0);
const QUEUED: usize = 5;

extern "C" fn note(signal: i32) {
    CAME.fetch_or(1 << (signal - 1), Ordering::Relaxed);
}

fn main() {
    play(|stage| {
        let stopped = fork(|| {
            catch_all();
            loop {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        });
        call::kill(stopped, libc::SIGSTOP).expect("stop the child");
        assert!(wait_until(|| own::state_of(&stopped.to_string()) == 'T'), "stops");
        stage.child("limited", |_| limited());
        catch_all();
        let child = fork(|| ());
        call::wait(child, 0).expect("reap");
        assert!(wait_until(
            || CAME.swap(0, Ordering::Relaxed) == 1 << (libc::SIGCHLD - 1)
        ));
        move |findings: &mut Findings| {
            if findings.sabotage() {
                findings.take("kill", call::kill(std::process::id() as i32, libc::SIGURG));
            }
            findings.same("signals that came", &0, &CAME.load(Ordering::Relaxed));
            // A stop that was made again takes effect when the thread is next on a processor.
            let state = || own::state_of(&stopped.to_string());
            wait_until(|| state() != 'R');
            findings.same("state of the stopped child", &'T', &state());
        }
    })
}

fn catch_all() {
    for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP, 32, 33].contains(signal)) {
        let action = libc::sigaction {
            sa_sigaction: note as *const () as usize,
            sa_flags: libc::SA_RESTART,
            sa_restorer: None,
            // SAFETY: zeros are an empty set.
            sa_mask: unsafe { std::mem::zeroed() },
        };
        // SAFETY: a handler of the right type.
        let status = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        assert!(status == 0, "catch {signal}");
    }
}

/// Signals that were queued before the limit was lowered. They can be looked at once only.
fn limited() -> impl FnMut(&mut Findings) {
    let mask = 1_u64 << (40 - 1);
    let args = [libc::SIG_BLOCK as usize, &raw const mask as usize, 0, 8];
    // SAFETY: eight bytes are read.
    unsafe { call::raw(libc::SYS_rt_sigprocmask, &args) }.expect("rt_sigprocmask");
    for _ in 0..QUEUED {
        call::kill(std::process::id() as i32, 40).expect("kill");
    }
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a valid limit.
    unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const none) };
    let mut left = QUEUED;
    move |findings| {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let args = [&raw const mask as usize, 0, &raw const none as usize, 8];
        // SAFETY: the set and the time are read.
        let take = || unsafe { call::raw(libc::SYS_rt_sigtimedwait, &args) }.is_ok();
        let count = (0..).take_while(|_| take()).count();
        findings.same("signals that waited", &left, &count);
        left = 0;
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let line = limits.lines().find(|line| line.starts_with("Max pending signals"));
        let words: Vec<&str> = line.unwrap_or_default().split_ascii_whitespace().collect();
        findings.same("limit", &Some(&["0", "0"][..]), &words.get(3..5));
    }
}
