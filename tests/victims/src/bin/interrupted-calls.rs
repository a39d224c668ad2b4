//! Calls that a stop interrupts: each must go on waiting, and return what it would have returned had nothing happened.
//! Threads that wait long are released by the check; threads that wait for short times do so all the while.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};
use victims::{Findings, Stage, call, play, wait_until, waiting::waits_in};

/// Seconds that a call would wait if nobody released it.
const LONG: i64 = 3600;
/// How long the short ones wait.
const SHORT: Duration = Duration::from_millis(7);
const SYS_FUTEX_WAITV: i64 = 449;
const INTERRUPTED: i64 = -(libc::EINTR as i64);
const TIMED_OUT: i64 = -(libc::ETIMEDOUT as i64);

/// What short calls did wrong.
static WRONG: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// How often the handler that lets calls go on ran.
static RESTARTED: AtomicU32 = AtomicU32::new(0);

extern "C" fn interrupt(_: i32) {}

extern "C" fn restart(_: i32) {
    RESTARTED.fetch_add(1, Ordering::Relaxed);
}

fn main() {
    play(|stage| {
        handle(libc::SIGUSR1, interrupt, 0);
        handle(libc::SIGURG, restart, libc::SA_RESTART);
        change_mask(libc::SIG_BLOCK, bit(libc::SIGUSR2));
        let mut calls: Vec<Call> = long_calls(stage).into_iter().map(Call::start).collect();
        for (name, expected, short) in short_calls() {
            std::thread::spawn(move || repeat(name, expected, short));
        }
        move |findings: &mut Findings| {
            if findings.sabotage() {
                signal(calls[0].tid, libc::SIGUSR1);
                wait_until(|| !calls[0].waits());
            }
            for call in &mut calls {
                call.check(findings);
            }
            for wrong in WRONG.lock().expect("no panic with the lock").drain(..) {
                findings.add(wrong);
            }
        }
    })
}

type Issue = Box<dyn Fn() -> i64 + Send>;
type Release = Box<dyn Fn(i32)>;

/// A call that waits until it is released.
struct Long {
    name: &'static str,
    number: i64,
    /// Whether it goes on behind a handler with SA_RESTART, signal(7).
    restarts: bool,
    expected: i64,
    issue: Issue,
    release: Release,
}

/// A thread that is in such a call.
struct Call {
    name: &'static str,
    number: i64,
    /// Whether it goes on behind a handler with SA_RESTART, signal(7).
    restarts: bool,
    expected: i64,
    release: Release,
    tid: i32,
    again: Sender<()>,
    results: Receiver<i64>,
}

impl Call {
    fn start(long: Long) -> Self {
        let (again, asked) = channel::<()>();
        let (answer, results) = channel();
        let (told, tid) = channel();
        let issue = long.issue;
        std::thread::spawn(move || {
            told.send(call::gettid()).expect("the starter waits");
            loop {
                answer.send(issue()).expect("the check lives");
                asked.recv().expect("the check lives");
            }
        });
        let call = Self {
            name: long.name,
            number: long.number,
            restarts: long.restarts,
            expected: long.expected,
            release: long.release,
            tid: tid.recv().expect("the thread starts"),
            again,
            results,
        };
        assert!(wait_until(|| call.waits()), "{} waits", call.name);
        call
    }

    fn waits(&self) -> bool {
        waits_in(self.tid, &[self.number, libc::SYS_restart_syscall])
    }

    fn check(&mut self, findings: &mut Findings) {
        let name = self.name;
        let mut early = None;
        let waits = wait_until(|| {
            early = self.results.try_recv().ok();
            early.is_some() || self.waits()
        });
        findings.that(waits, format!("{name} does not wait"));
        if let Some(result) = early {
            findings.add(format!("{name} returned {result} although nobody released it"));
        } else {
            let before = RESTARTED.load(Ordering::Relaxed);
            if self.restarts {
                signal(self.tid, libc::SIGURG);
                let ran = wait_until(|| RESTARTED.load(Ordering::Relaxed) > before);
                findings.that(ran && wait_until(|| self.waits()), format!("{name} does not go on"));
            }
            (self.release)(self.tid);
            match self.results.recv_timeout(Duration::from_secs(60)) {
                Ok(result) => findings.same(format!("result of {name}"), &self.expected, &result),
                Err(_) => return findings.add(format!("{name} does not return")),
            }
        }
        self.again.send(()).expect("the thread lives");
        findings.that(wait_until(|| self.waits()), format!("{name} does not wait again"));
    }
}

/// The whole list; what releases most of them is a signal whose handler lets no call go on.
fn long_calls(stage: &Stage) -> Vec<Long> {
    let mut calls = sleeps();
    calls.extend(signal_waits());
    calls.extend(descriptor_waits());
    calls.extend(futex_waits());
    calls.extend(pipe_waits());
    calls.extend([false, true].map(child_wait));
    calls.extend([libc::O_RDONLY, libc::O_WRONLY].map(|flags| fifo_open(stage.dir(), flags)));
    calls
}

fn interrupted(name: &'static str, number: i64, issue: impl Fn() -> i64 + Send + 'static) -> Long {
    Long {
        name,
        number,
        restarts: false,
        expected: INTERRUPTED,
        issue: Box::new(issue),
        release: Box::new(|tid| signal(tid, libc::SIGUSR1)),
    }
}

fn sleeps() -> Vec<Long> {
    let relative = |clock: i32| {
        move || {
            let (time, mut rest) = (seconds(LONG), seconds(0));
            sys(
                libc::SYS_clock_nanosleep,
                &[clock as usize, 0, at(&time), at_mut(&mut rest)],
            )
        }
    };
    let absolute = |clock: i32| {
        move || {
            let time = later(clock, LONG);
            sys(
                libc::SYS_clock_nanosleep,
                &[clock as usize, libc::TIMER_ABSTIME as usize, at(&time), 0],
            )
        }
    };
    vec![
        interrupted("nanosleep", libc::SYS_nanosleep, || {
            sys(libc::SYS_nanosleep, &[at(&seconds(LONG)), 0])
        }),
        interrupted("nanosleep with a remainder", libc::SYS_nanosleep, || {
            let mut rest = seconds(0);
            let result = sys(libc::SYS_nanosleep, &[at(&seconds(LONG)), at_mut(&mut rest)]);
            let plausible = rest.tv_sec > LONG - 600 && rest.tv_sec < LONG;
            if plausible { result } else { -10_000 - rest.tv_sec }
        }),
        interrupted(
            "clock_nanosleep",
            libc::SYS_clock_nanosleep,
            relative(libc::CLOCK_MONOTONIC),
        ),
        interrupted(
            "clock_nanosleep real",
            libc::SYS_clock_nanosleep,
            relative(libc::CLOCK_REALTIME),
        ),
        interrupted(
            "absolute clock_nanosleep",
            libc::SYS_clock_nanosleep,
            absolute(libc::CLOCK_MONOTONIC),
        ),
        interrupted(
            "absolute clock_nanosleep real",
            libc::SYS_clock_nanosleep,
            absolute(libc::CLOCK_REALTIME),
        ),
    ]
}

fn signal_waits() -> Vec<Long> {
    let wait = |name, time: Option<i64>| Long {
        name,
        number: libc::SYS_rt_sigtimedwait,
        restarts: false,
        expected: libc::SIGUSR2.into(),
        issue: Box::new(move || {
            let (set, time) = (bit(libc::SIGUSR2), time.map(seconds));
            let time = time.as_ref().map_or(0, at);
            sys(libc::SYS_rt_sigtimedwait, &[at(&set), 0, time, 8])
        }),
        release: Box::new(|tid| signal(tid, libc::SIGUSR2)),
    };
    vec![
        interrupted("pause", libc::SYS_pause, || sys(libc::SYS_pause, &[])),
        interrupted("sigsuspend", libc::SYS_rt_sigsuspend, || {
            with_blocked(libc::SIGUSR1, |open| sys(libc::SYS_rt_sigsuspend, &[at(&open), 8]))
        }),
        wait("sigtimedwait", Some(LONG)),
        wait("sigwaitinfo", None),
    ]
}

/// Waits for descriptors, ended by a byte in a pipe; without a descriptor, and behind a mask, ended by a signal.
fn descriptor_waits() -> Vec<Long> {
    let mut calls = vec![
        interrupted("poll of nothing", libc::SYS_poll, || {
            sys(libc::SYS_poll, &[0, 0, LONG as usize * 1000])
        }),
        interrupted("ppoll behind a mask", libc::SYS_ppoll, || {
            with_blocked(libc::SIGUSR1, |open| {
                let mut time = seconds(LONG);
                sys(libc::SYS_ppoll, &[0, 0, at_mut(&mut time), at(&open), 8])
            })
        }),
        interrupted("pselect behind a mask", libc::SYS_pselect6, || {
            with_blocked(libc::SIGUSR1, |open| {
                let (mut time, mask) = (seconds(LONG), [at(&open), 8]);
                sys(libc::SYS_pselect6, &[0, 0, 0, 0, at_mut(&mut time), at(&mask)])
            })
        }),
    ];
    for (name, limited) in [("poll", true), ("poll without limit", false)] {
        calls.push(readable(name, libc::SYS_poll, move |fd| {
            let mut entry = [fd as u32, libc::POLLIN as u32];
            let time = if limited { LONG as usize * 1000 } else { usize::MAX };
            sys(libc::SYS_poll, &[at_mut(&mut entry), 1, time])
        }));
    }
    for (name, limited) in [("ppoll", true), ("ppoll without limit", false)] {
        calls.push(readable(name, libc::SYS_ppoll, move |fd| {
            let (mut entry, mut time) = ([fd as u32, libc::POLLIN as u32], seconds(LONG));
            let time = if limited { at_mut(&mut time) } else { 0 };
            sys(libc::SYS_ppoll, &[at_mut(&mut entry), 1, time, 0, 8])
        }));
    }
    for (name, number) in [("select", libc::SYS_select), ("pselect", libc::SYS_pselect6)] {
        calls.push(readable(name, number, move |fd| {
            let (mut set, mut time) = ([0_u64; 16], seconds(LONG));
            set[fd as usize / 64] |= 1 << (fd % 64);
            sys(number, &[fd as usize + 1, at_mut(&mut set), 0, 0, at_mut(&mut time), 0])
        }));
    }
    calls
}

/// A wait for a byte in a pipe.
fn readable(name: &'static str, number: i64, issue: impl Fn(i32) -> i64 + Send + 'static) -> Long {
    let ends = call::pipe(0);
    Long {
        name,
        number,
        restarts: false,
        expected: 1,
        issue: Box::new(move || {
            let result = issue(ends[0]);
            let byte = call::read(ends[0], 1).map_or(0, |bytes| bytes.len() as i64);
            if byte == 1 { result } else { -20_000 }
        }),
        release: Box::new(move |_| drop(call::write(ends[1], b"x"))),
    }
}

fn futex_waits() -> Vec<Long> {
    let private = libc::FUTEX_PRIVATE_FLAG;
    let bitset = libc::FUTEX_WAIT_BITSET | private;
    let wait = |name, operation: i32, time: Option<fn() -> libc::timespec>| {
        futex(name, libc::SYS_futex, time.is_none(), move |word| {
            let time = time.map(|time| time());
            let time = time.as_ref().map_or(0, at);
            sys(libc::SYS_futex, &[at(word), operation as usize, 0, time, 0, usize::MAX])
        })
    };
    vec![
        wait("futex", libc::FUTEX_WAIT | private, None),
        wait("futex with a time", libc::FUTEX_WAIT | private, Some(|| seconds(LONG))),
        wait(
            "futex until a time",
            bitset,
            Some(|| later(libc::CLOCK_MONOTONIC, LONG)),
        ),
        wait(
            "futex until a real time",
            bitset | libc::FUTEX_CLOCK_REALTIME,
            Some(|| later(libc::CLOCK_REALTIME, LONG)),
        ),
        wait("futex for bits", bitset, None),
        futex("futex_waitv", SYS_FUTEX_WAITV, true, |word| {
            // struct futex_waitv: value, address, flags (32 bits, private), reserved.
            let waiter = [0_u64, at(word) as u64, 2 | 128];
            let time = later(libc::CLOCK_MONOTONIC, LONG);
            sys(
                SYS_FUTEX_WAITV,
                &[at(&waiter), 1, 0, at(&time), libc::CLOCK_MONOTONIC as usize],
            )
        }),
        inheriting_lock(),
    ]
}

/// A wait that a wake of its futex ends.
fn futex(name: &'static str, number: i64, restarts: bool, issue: impl Fn(&AtomicU32) -> i64 + Send + 'static) -> Long {
    let word: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
    Long {
        name,
        number,
        restarts,
        expected: 0,
        issue: Box::new(move || {
            word.store(0, Ordering::Relaxed);
            issue(word)
        }),
        release: Box::new(|_| {}),
    }
    .released(move |_| {
        word.store(1, Ordering::Relaxed);
        let wake = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as usize;
        sys(libc::SYS_futex, &[at(word), wake, 1]);
    })
}

impl Long {
    fn released(mut self, release: impl Fn(i32) + 'static) -> Self {
        self.release = Box::new(release);
        self
    }
}

/// A wait for a lock with priority inheritance that the main thread holds.
fn inheriting_lock() -> Long {
    let word: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
    let lock = || {
        sys(
            libc::SYS_futex,
            &[
                at(word),
                (libc::FUTEX_LOCK_PI | libc::FUTEX_PRIVATE_FLAG) as usize,
                0,
                0,
            ],
        )
    };
    let unlock = || {
        sys(
            libc::SYS_futex,
            &[at(word), (libc::FUTEX_UNLOCK_PI | libc::FUTEX_PRIVATE_FLAG) as usize],
        )
    };
    assert_eq!(lock(), 0);
    let taken: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    Long {
        name: "futex with priority inheritance",
        number: libc::SYS_futex,
        restarts: true,
        expected: 0,
        issue: Box::new(move || {
            while taken.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            let result = lock();
            taken.store(true, Ordering::Relaxed);
            if result == 0 { unlock() } else { result }
        }),
        release: Box::new(|_| {}),
    }
    .released(move |_| {
        assert_eq!(unlock(), 0);
        assert!(wait_until(|| taken.load(Ordering::Relaxed)), "the lock is taken");
        assert_eq!(lock(), 0);
        taken.store(false, Ordering::Relaxed);
    })
}

fn pipe_waits() -> Vec<Long> {
    let [reads, writes] = call::pipe(0);
    let [splice_reads, splice_writes] = call::pipe(0);
    let [sink_reads, sink_writes] = call::pipe(0);
    let [full_reads, full_writes] = call::pipe(0);
    let size = call::fcntl(full_writes, libc::F_GETPIPE_SZ, 0).expect("size of a pipe") as usize;
    let used = AtomicBool::new(false);
    let number = |fd: i32| fd as usize;
    let plain = |name, number, issue: Issue, release: Release| Long {
        name,
        number,
        restarts: true,
        expected: 1,
        issue,
        release,
    };
    vec![
        plain(
            "read",
            libc::SYS_read,
            Box::new(move || {
                let mut byte = 0_u8;
                sys(libc::SYS_read, &[number(reads), at_mut(&mut byte), 1])
            }),
            Box::new(move |_| drop(call::write(writes, b"x"))),
        ),
        plain(
            "write into a full pipe",
            libc::SYS_write,
            Box::new(move || {
                // The byte of the last time.
                if used.swap(true, Ordering::Relaxed) {
                    call::read(full_reads, size).expect("empty the pipe");
                }
                call::write(full_writes, &vec![7; size]).expect("fill the pipe");
                sys(libc::SYS_write, &[number(full_writes), at(&7_u8), 1])
            }),
            Box::new(move |_| drop(call::read(full_reads, size))),
        ),
        plain(
            "splice",
            libc::SYS_splice,
            Box::new(move || {
                let result = sys(
                    libc::SYS_splice,
                    &[number(splice_reads), 0, number(sink_writes), 0, 1, 0],
                );
                call::read(sink_reads, 1).map_or(-30_000, |_| result)
            }),
            Box::new(move |_| drop(call::write(splice_writes, b"x"))),
        ),
    ]
}

/// A wait for the end of a child.
fn child_wait(by_id: bool) -> Long {
    let [reads, writes] = call::pipe(0);
    let number = if by_id { libc::SYS_waitid } else { libc::SYS_wait4 };
    Long {
        name: if by_id { "waitid" } else { "wait4" },
        number,
        restarts: true,
        expected: 9,
        issue: Box::new(move || {
            // SAFETY: the child issues system calls only, and ends.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // Another thread may have had a file of /proc open just then.
                let (below, above) = (reads as usize - 1, reads as usize + 1);
                sys(libc::SYS_close_range, &[3, below, 0]);
                sys(libc::SYS_close_range, &[above, u32::MAX as usize, 0]);
                let mut byte = 0_u8;
                while sys(libc::SYS_read, &[reads as usize, at_mut(&mut byte), 1]) != 1 {}
                // SAFETY: ends at once.
                unsafe { libc::_exit(9) };
            }
            let (mut status, mut info) = (0_i32, [0_i32; 32]);
            let result = if by_id {
                let flags = libc::WEXITED as usize;
                sys(
                    number,
                    &[libc::P_PID as usize, pid as usize, at_mut(&mut info), flags, 0],
                )
            } else {
                sys(number, &[pid as usize, at_mut(&mut status), 0, 0]).min(0)
            };
            let code = if by_id { info[6] } else { libc::WEXITSTATUS(status) };
            if result == 0 { code.into() } else { result }
        }),
        release: Box::new(move |_| drop(call::write(writes, b"x"))),
    }
}

/// The opening of a fifo whose other end nobody has opened.
fn fifo_open(dir: &Path, flags: i32) -> Long {
    let path: PathBuf = dir.join(format!("fifo.{flags}"));
    let name = std::ffi::CString::new(path.to_str().expect("a plain path")).expect("a plain path");
    // SAFETY: a path that ends with a zero.
    unsafe { libc::mkfifo(name.as_ptr(), 0o600) };
    let other = if flags == libc::O_RDONLY {
        libc::O_WRONLY
    } else {
        libc::O_RDONLY
    };
    let peer = name.clone();
    Long {
        name: if flags == libc::O_RDONLY {
            "open to read"
        } else {
            "open to write"
        },
        number: libc::SYS_openat,
        restarts: true,
        expected: 1,
        issue: Box::new(move || {
            let fd = sys(
                libc::SYS_openat,
                &[libc::AT_FDCWD as usize, name.as_ptr() as usize, flags as usize],
            );
            if fd < 0 {
                return fd;
            }
            call::close(fd as i32);
            1
        }),
        release: Box::new(move |_| {
            // SAFETY: a path that ends with a zero.
            let fd = unsafe { libc::open(peer.as_ptr(), other) };
            call::close(fd);
        }),
    }
}

type Short = Box<dyn Fn() -> i64 + Send>;

/// Calls whose time runs out, with what they return then.
fn short_calls() -> Vec<(&'static str, i64, Short)> {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: SHORT.as_nanos() as i64,
    };
    let until = |clock| {
        let mut time = now(clock);
        time.tv_nsec += SHORT.as_nanos() as i64;
        if time.tv_nsec >= 1_000_000_000 {
            time.tv_sec += 1;
            time.tv_nsec -= 1_000_000_000;
        }
        time
    };
    let clock = libc::CLOCK_MONOTONIC;
    let word: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
    let private = libc::FUTEX_PRIVATE_FLAG;
    let millis = SHORT.as_millis() as usize;
    let again = -i64::from(libc::EAGAIN);
    vec![
        (
            "short nanosleep",
            0,
            Box::new(move || sys(libc::SYS_nanosleep, &[at(&time), 0])),
        ),
        (
            "short clock_nanosleep",
            0,
            Box::new(move || sys(libc::SYS_clock_nanosleep, &[clock as usize, 0, at(&time), 0])),
        ),
        (
            "short absolute clock_nanosleep",
            0,
            Box::new(move || {
                let flag = libc::TIMER_ABSTIME as usize;
                sys(libc::SYS_clock_nanosleep, &[clock as usize, flag, at(&until(clock)), 0])
            }),
        ),
        ("short poll", 0, Box::new(move || sys(libc::SYS_poll, &[0, 0, millis]))),
        (
            "short ppoll",
            0,
            Box::new(move || sys(libc::SYS_ppoll, &[0, 0, at_mut(&mut { time }), 0, 8])),
        ),
        (
            "short select",
            0,
            Box::new(move || {
                let mut time = [0_i64, SHORT.as_micros() as i64];
                sys(libc::SYS_select, &[0, 0, 0, 0, at_mut(&mut time)])
            }),
        ),
        (
            "short pselect",
            0,
            Box::new(move || sys(libc::SYS_pselect6, &[0, 0, 0, 0, at_mut(&mut { time }), 0])),
        ),
        (
            "short futex",
            TIMED_OUT,
            Box::new(move || {
                sys(
                    libc::SYS_futex,
                    &[at(word), (libc::FUTEX_WAIT | private) as usize, 0, at(&time)],
                )
            }),
        ),
        (
            "short futex until",
            TIMED_OUT,
            Box::new(move || {
                let operation = (libc::FUTEX_WAIT_BITSET | private) as usize;
                sys(
                    libc::SYS_futex,
                    &[at(word), operation, 0, at(&until(clock)), 0, usize::MAX],
                )
            }),
        ),
        (
            "short futex_waitv",
            TIMED_OUT,
            Box::new(move || {
                let waiter = [0_u64, at(word) as u64, 2 | 128];
                sys(SYS_FUTEX_WAITV, &[at(&waiter), 1, 0, at(&until(clock)), clock as usize])
            }),
        ),
        (
            "short sigtimedwait",
            again,
            Box::new(move || sys(libc::SYS_rt_sigtimedwait, &[at(&bit(libc::SIGUSR2)), 0, at(&time), 8])),
        ),
    ]
}

fn repeat(name: &'static str, expected: i64, issue: Short) {
    loop {
        let start = Instant::now();
        let result = issue();
        let waited = start.elapsed();
        if result != expected || waited < SHORT {
            let mut wrong = WRONG.lock().expect("no panic with the lock");
            wrong.push(format!("{name} returned {result} after {waited:?}"));
        }
    }
}

fn sys(number: i64, args: &[usize]) -> i64 {
    // SAFETY: every caller in this file gives arguments that outlive the call and have the sizes it demands.
    unsafe { call::raw(number, args) }.unwrap_or_else(|error| -i64::from(error.raw_os_error().unwrap_or(0)))
}

fn at<T>(value: &T) -> usize {
    std::ptr::from_ref(value) as usize
}

fn at_mut<T>(value: &mut T) -> usize {
    std::ptr::from_mut(value) as usize
}

fn seconds(seconds: i64) -> libc::timespec {
    libc::timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    }
}

fn now(clock: i32) -> libc::timespec {
    let mut time = seconds(0);
    // SAFETY: room for the answer.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time
}

fn later(clock: i32, seconds: i64) -> libc::timespec {
    let mut time = now(clock);
    time.tv_sec += seconds;
    time
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Issues a call with `signal` blocked, and hands it the mask with which the call lets it through.
fn with_blocked(signal: i32, issue: impl Fn(u64) -> i64) -> i64 {
    let open = change_mask(libc::SIG_BLOCK, bit(signal));
    let result = issue(open);
    let blocked = change_mask(libc::SIG_SETMASK, open);
    if blocked == open | bit(signal) { result } else { -40_000 }
}

fn change_mask(how: i32, mask: u64) -> u64 {
    let mut old = 0_u64;
    sys(
        libc::SYS_rt_sigprocmask,
        &[how as usize, at(&mask), at_mut(&mut old), 8],
    );
    old
}

fn signal(tid: i32, signal: i32) {
    sys(
        libc::SYS_tgkill,
        &[std::process::id() as usize, tid as usize, signal as usize],
    );
}

fn handle(signal: i32, handler: extern "C" fn(i32), flags: i32) {
    let action = libc::sigaction {
        sa_sigaction: handler as *const () as usize,
        sa_flags: flags,
        sa_restorer: None,
        // SAFETY: zeros are an empty set.
        sa_mask: unsafe { std::mem::zeroed() },
    };
    // SAFETY: a handler of the right type.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}
