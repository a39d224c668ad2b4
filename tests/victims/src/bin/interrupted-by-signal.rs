//! A signal that comes while a call waits: its handler runs once and the call ends with EINTR, also where the signal came
//! while the process could not run. With the argument `outside` somebody else sends the signals, to every child.

use std::sync::atomic::{AtomicI64, Ordering};
use victims::{Findings, call, memory::Mapping, own, play, stage::fork, wait_until, waiting::waits_in};

const INTERRUPTED: i64 = -(libc::EINTR as i64);
/// Seconds that a call would wait without a signal.
const LONG: libc::timespec = libc::timespec {
    tv_sec: 3600,
    tv_nsec: 0,
};

/// What a child tells: how often its handler ran, how many calls ended, the last result.
struct Told {
    page: Mapping,
}

impl Told {
    fn word(&self, n: usize) -> &AtomicI64 {
        let place = (self.page.address as *const AtomicI64).wrapping_add(n);
        // SAFETY: the page is mapped for good, and zeros are good counters.
        unsafe { &*place }
    }
}

/// The handler's counter, in the child.
static HANDLED: AtomicI64 = AtomicI64::new(0);

extern "C" fn note(_: i32) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

struct Child {
    name: &'static str,
    number: i64,
    pid: i32,
    told: Told,
    rounds: i64,
}

fn main() {
    play(|stage| {
        let outside = stage.arg(0) == Some("outside");
        let mut children: Vec<Child> = calls()
            .into_iter()
            .map(|(name, number, args)| start(name, number, args))
            .collect();
        move |findings: &mut Findings| {
            for child in &mut children {
                if findings.sabotage() {
                    findings.take("kill", call::kill(child.pid, libc::SIGUSR1));
                    wait_until(|| child.told.word(1).load(Ordering::Relaxed) > child.rounds);
                }
                child.check(findings, !outside);
            }
        }
    })
}

/// Calls with their arguments; addresses are those of memory that children inherit.
fn calls() -> Vec<(&'static str, i64, [usize; 6])> {
    let time = std::ptr::from_ref(Box::leak(Box::new(LONG))) as usize;
    let empty = std::ptr::from_ref(Box::leak(Box::new(0_u64))) as usize;
    let word = std::ptr::from_ref(Box::leak(Box::new(0_u32))) as usize;
    let pipe = call::pipe(0)[0] as usize;
    let byte = std::ptr::from_mut(Box::leak(Box::new(0_u8))) as usize;
    let until = Box::leak(Box::new(LONG));
    // SAFETY: room for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, until) };
    until.tv_sec += LONG.tv_sec;
    let until = std::ptr::from_ref(until) as usize;
    let absolute = libc::TIMER_ABSTIME as usize;
    let bitset = (libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG) as usize;
    vec![
        ("nanosleep", libc::SYS_nanosleep, [time, 0, 0, 0, 0, 0]),
        ("clock_nanosleep", libc::SYS_clock_nanosleep, [1, 0, time, 0, 0, 0]),
        (
            "absolute clock_nanosleep",
            libc::SYS_clock_nanosleep,
            [1, absolute, until, 0, 0, 0],
        ),
        ("poll", libc::SYS_poll, [0, 0, 3_600_000, 0, 0, 0]),
        ("ppoll", libc::SYS_ppoll, [0, 0, time, empty, 8, 0]),
        ("select", libc::SYS_select, [0, 0, 0, 0, 0, 0]),
        ("pselect", libc::SYS_pselect6, [0, 0, 0, 0, time, 0]),
        ("futex", libc::SYS_futex, [word, libc::FUTEX_WAIT as usize, 0, 0, 0, 0]),
        (
            "futex with a time",
            libc::SYS_futex,
            [word, libc::FUTEX_WAIT as usize, 0, time, 0, 0],
        ),
        (
            "futex until a time",
            libc::SYS_futex,
            [word, bitset, 0, until, 0, usize::MAX],
        ),
        ("pause", libc::SYS_pause, [0; 6]),
        ("sigsuspend", libc::SYS_rt_sigsuspend, [empty, 8, 0, 0, 0, 0]),
        ("sigtimedwait", libc::SYS_rt_sigtimedwait, [empty, 0, time, 8, 0, 0]),
        ("read", libc::SYS_read, [pipe, byte, 1, 0, 0, 0]),
    ]
}

/// Forks a child that is in the call all the time. Where the call lets the signal through by a mask of its own, the
/// signal is blocked else.
fn start(name: &'static str, number: i64, args: [usize; 6]) -> Child {
    let told = Told {
        page: Mapping::anonymous(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED),
    };
    let masked = [libc::SYS_ppoll, libc::SYS_rt_sigsuspend].contains(&number);
    let pid = fork(|| {
        handle(libc::SIGUSR1);
        if masked {
            block(libc::SIGUSR1);
        }
        loop {
            // SAFETY: the addresses are of memory that stays.
            let result = unsafe { call::raw(number, &args) };
            let result = result.unwrap_or_else(|error| -i64::from(error.raw_os_error().unwrap_or(0)));
            told.word(0).store(HANDLED.load(Ordering::Relaxed), Ordering::Relaxed);
            told.word(2).store(result, Ordering::Relaxed);
            told.word(1).fetch_add(1, Ordering::Relaxed);
        }
    });
    let child = Child {
        name,
        number,
        pid,
        told,
        rounds: 0,
    };
    assert!(wait_until(|| child.waits()), "{name} waits");
    child
}

impl Child {
    fn waits(&self) -> bool {
        waits_in(self.pid, &[self.number, libc::SYS_restart_syscall])
    }

    fn check(&mut self, findings: &mut Findings, send: bool) {
        let name = self.name;
        let word = |n| self.told.word(n).load(Ordering::Relaxed);
        if send {
            findings.same(
                format!("calls of {name} that ended before the signal"),
                &self.rounds,
                &word(1),
            );
            findings.that(wait_until(|| self.waits()), format!("{name} does not wait"));
            findings.take("kill", call::kill(self.pid, libc::SIGUSR1));
        }
        self.rounds += 1;
        findings.that(wait_until(|| word(1) >= self.rounds), format!("{name} does not end"));
        findings.same(format!("calls of {name} that ended"), &self.rounds, &word(1));
        findings.same(format!("runs of the handler in {name}"), &self.rounds, &word(0));
        findings.same(format!("result of {name}"), &INTERRUPTED, &word(2));
        findings.same(
            format!("state of {name}"),
            &"0000000000000000".to_owned(),
            &own::status_of(&self.pid.to_string(), "SigPnd"),
        );
        findings.that(wait_until(|| self.waits()), format!("{name} does not wait again"));
    }
}

fn block(signal: i32) {
    let mask = 1_u64 << (signal - 1);
    let args = [libc::SIG_BLOCK as usize, &raw const mask as usize, 0, 8];
    // SAFETY: eight bytes are read.
    unsafe { call::raw(libc::SYS_rt_sigprocmask, &args) }.expect("rt_sigprocmask");
}

fn handle(signal: i32) {
    let action = libc::sigaction {
        sa_sigaction: note as *const () as usize,
        sa_flags: 0,
        sa_restorer: None,
        // SAFETY: zeros are an empty set.
        sa_mask: unsafe { std::mem::zeroed() },
    };
    // SAFETY: a handler of the right type.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}
