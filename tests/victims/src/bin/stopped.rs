//! Processes that job control has stopped: they stay stopped, their parent learns of it once and no more, and SIGCONT
//! lets them go on.

use std::sync::atomic::{AtomicU32, Ordering};
use victims::{Findings, call, memory::Mapping, own, play, stage::fork, wait_until};

const THREADS: usize = 4;

/// A child and how it is stopped.
struct Child {
    pid: i32,
    signal: i32,
    /// Whether the parent has waited for the stop.
    reported: bool,
    /// Signals sent to it while it is stopped.
    waiting: bool,
    /// How often it, and each of its threads, went round.
    rounds: &'static [AtomicU32],
}

fn main() {
    play(|_| {
        block(libc::SIGCHLD);
        let kinds = [
            (libc::SIGSTOP, true, 0, false),
            (libc::SIGSTOP, false, 0, false),
            (libc::SIGTSTP, true, 0, false),
            (libc::SIGTSTP, false, 0, false),
            (libc::SIGTTIN, true, 0, false),
            (libc::SIGTTOU, false, 0, false),
            (libc::SIGSTOP, true, THREADS, false),
            (libc::SIGTSTP, false, THREADS, false),
            (libc::SIGSTOP, true, 0, true),
            (libc::SIGSTOP, false, THREADS, true),
        ];
        let children: Vec<Child> = kinds
            .into_iter()
            .map(|(signal, reported, threads, waiting)| start(signal, reported, threads, waiting))
            .collect();
        children.iter().for_each(Child::stop);
        move |findings: &mut Findings| {
            if findings.sabotage() {
                findings.take("continue", call::kill(children[0].pid, libc::SIGCONT));
            }
            findings.same("a SIGCHLD waits", &false, &child_signal(false));
            for (n, child) in children.iter().enumerate() {
                child.check(n, findings);
            }
            for (n, child) in children.iter().enumerate() {
                child.go_on(n, findings);
                child.stop();
            }
        }
    })
}

fn start(signal: i32, reported: bool, threads: usize, waiting: bool) -> Child {
    let page = Mapping::anonymous(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    let first = page.address as *const AtomicU32;
    // SAFETY: the page is mapped for good, and zeros are good counters.
    let rounds: &'static [AtomicU32] = unsafe { std::slice::from_raw_parts(first, threads + 1) };
    let pid = fork(|| {
        // Signals from the keyboard do not stop a group whose members' parents are all in it.
        // SAFETY: plain numbers.
        unsafe { libc::setpgid(0, 0) };
        block(40);
        // SAFETY: a handler of the right type.
        unsafe { libc::signal(libc::SIGUSR1, ignore as *const () as usize) };
        for counter in &rounds[1..] {
            std::thread::spawn(move || go_round(counter));
        }
        go_round(&rounds[0]);
    });
    assert!(wait_until(|| rounds
        .iter()
        .all(|counter| counter.load(Ordering::Relaxed) > 0)));
    Child {
        pid,
        signal,
        reported,
        waiting,
        rounds,
    }
}

extern "C" fn ignore(_: i32) {}

fn go_round(counter: &AtomicU32) {
    loop {
        counter.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

impl Child {
    /// Stops it, with all that is to be so while it is stopped.
    fn stop(&self) {
        call::kill(self.pid, self.signal).expect("stop the child");
        assert!(child_signal(true), "no SIGCHLD for the stop");
        assert!(wait_until(|| self.states().iter().all(|state| *state == 'T')), "stops");
        if self.reported {
            assert_eq!(self.told(libc::WSTOPPED), Some((libc::CLD_STOPPED, self.signal)));
        }
        if self.waiting {
            call::kill(self.pid, 40).expect("send a signal");
            call::kill(self.pid, libc::SIGUSR1).expect("send a signal");
        }
    }

    fn check(&self, n: usize, findings: &mut Findings) {
        // A stop that was made again takes effect when the thread is next on a processor.
        wait_until(|| !self.states().contains(&'R'));
        let states = self.states();
        findings.that(
            states.len() == self.rounds.len() && states.iter().all(|state| *state == 'T'),
            format!("child {n}: its threads are in states {states:?}"),
        );
        let expected = (!self.reported).then_some((libc::CLD_STOPPED, self.signal));
        findings.same(
            format!("child {n}: stop to be reported"),
            &expected,
            &self.told(libc::WSTOPPED | libc::WNOWAIT),
        );
        findings.same(
            format!("child {n}: anything else to be reported"),
            &None,
            &self.told(libc::WEXITED | libc::WCONTINUED | libc::WNOWAIT),
        );
        if self.waiting {
            let pending = u64::from_str_radix(&own::status_of(&self.pid.to_string(), "ShdPnd"), 16);
            findings.same(
                format!("child {n}: signals that wait"),
                &Ok(1 << 39 | 1 << (libc::SIGUSR1 - 1)),
                &pending,
            );
        }
    }

    fn go_on(&self, n: usize, findings: &mut Findings) {
        let before: Vec<u32> = self.rounds.iter().map(|round| round.load(Ordering::Relaxed)).collect();
        findings.take(format!("child {n}"), call::kill(self.pid, libc::SIGCONT));
        findings.that(child_signal(true), format!("child {n}: no SIGCHLD for going on"));
        findings.same(
            format!("child {n}: going on is told"),
            &Some((libc::CLD_CONTINUED, libc::SIGCONT)),
            &self.told(libc::WCONTINUED),
        );
        let goes = wait_until(|| {
            let mut pairs = self.rounds.iter().zip(&before);
            pairs.all(|(now, before)| now.load(Ordering::Relaxed) > *before)
        });
        findings.that(goes, format!("child {n} does not go on"));
    }

    /// What waitid tells of it at once.
    fn told(&self, flags: i32) -> Option<(i32, i32)> {
        // SAFETY: zeros are a valid siginfo.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: room for the answer.
        unsafe { libc::waitid(libc::P_PID, self.pid as u32, &raw mut info, flags | libc::WNOHANG) };
        // SAFETY: waitid fills in these fields, or leaves the zeros.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        (pid == self.pid).then_some((info.si_code, status))
    }

    /// The states of all its threads.
    fn states(&self) -> Vec<char> {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", self.pid)) else {
            return vec![];
        };
        let ids = tasks
            .flatten()
            .map(|task| task.file_name().to_string_lossy().into_owned());
        ids.map(|tid| own::state_of(&format!("{}/task/{tid}", self.pid)))
            .collect()
    }
}

fn block(signal: i32) {
    let mask = 1_u64 << (signal - 1);
    let args = [libc::SIG_BLOCK as usize, &raw const mask as usize, 0, 8];
    // SAFETY: eight bytes are read.
    unsafe { call::raw(libc::SYS_rt_sigprocmask, &args) }.expect("rt_sigprocmask");
}

/// Takes a SIGCHLD out of the queue; whether there was one, or came within ten seconds.
fn child_signal(wait: bool) -> bool {
    let mask = 1_u64 << (libc::SIGCHLD - 1);
    let time = libc::timespec {
        tv_sec: if wait { 10 } else { 0 },
        tv_nsec: 0,
    };
    let args = [&raw const mask as usize, 0, &raw const time as usize, 8];
    // SAFETY: the set and the time are read.
    unsafe { call::raw(libc::SYS_rt_sigtimedwait, &args) }.is_ok()
}
