//! Signals that wait: in the queue of the process and of a thread, in order, each with all that came with it.

use std::sync::mpsc::{Sender, channel};
use victims::{Findings, call, play, stage::fork};

const SI_QUEUE: i32 = -1;
const SI_MESGQ: i32 = -3;
const SI_KERNEL: i32 = 0x80;
/// Bytes of a siginfo_t that any of these signals fills.
const INFO: usize = 48;

type Info = [u8; 128];

fn main() {
    play(|_| {
        // SAFETY: zeros are an empty set.
        let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: fills the set.
        unsafe { libc::sigfillset(&raw mut all) };
        // SAFETY: a valid set.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()) };
        let thread = Thread::start();
        send_to_process();
        let mut expected = None;
        move |findings: &mut Findings| {
            if findings.sabotage() {
                take(1 << (41 - 1));
            }
            let (own, threads) = (drain(), thread.drain());
            // What is right is known once: from a first draining of the same signals, sent again.
            let expected = expected.get_or_insert_with(|| {
                send_to_process();
                thread.send();
                (drain(), thread.drain())
            });
            compare(findings, "process", &expected.0, &own);
            compare(findings, "thread", &expected.1, &threads);
            findings.that(
                own.iter().any(|info| number(info, 2) == SI_KERNEL),
                "no signal of the kernel among them",
            );
            findings.that(
                own.len() >= 14 && threads.len() >= 6,
                format!("too few: {} and {}", own.len(), threads.len()),
            );
            send_to_process();
            thread.send();
        }
    })
}

/// Each call leaves the same signals waiting, but for the id of the child that sends one.
fn send_to_process() {
    let own = std::process::id() as i32;
    for n in 0..4 {
        queue(own, None, 40, SI_QUEUE, 1000 + n);
        queue(own, None, 41, SI_QUEUE, 2000 + n);
    }
    queue(own, None, 64, SI_MESGQ, 64);
    queue(own, None, libc::SIGUSR1, SI_QUEUE, 0xdead_beef_0000);
    queue(own, None, 39, 0, 5);
    call::kill(own, libc::SIGUSR2).expect("kill");
    call::kill(own, libc::SIGTERM).expect("kill");
    // From the kernel, when a pipe has no reader; from a child that ends; from a timer.
    let ends = call::pipe(0);
    call::close(ends[0]);
    assert!(call::write(ends[1], b"x").is_err());
    call::close(ends[1]);
    let child = fork(|| {
        let _ = call::kill(own, 45);
        // SAFETY: leaves at once.
        unsafe { libc::_exit(9) }
    });
    // SAFETY: zeros are a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: room for the answer. The child ends, but is not reaped yet.
    unsafe { libc::waitid(libc::P_PID, child as u32, &raw mut info, libc::WEXITED | libc::WNOWAIT) };
    let soon = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: 0, tv_usec: 1 },
    };
    // SAFETY: a valid value.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const soon, std::ptr::null_mut()) };
    let bit = 1_u64 << (libc::SIGALRM - 1);
    assert!(victims::wait_until(|| pending() & bit != 0), "the timer's signal");
    call::wait(child, 0).expect("reap the child");
}

/// A thread whose own queue is filled.
struct Thread {
    tid: i32,
    ask: Sender<Sender<Vec<Info>>>,
}

impl Thread {
    fn start() -> Self {
        let (ask, asked) = channel::<Sender<Vec<Info>>>();
        let (told, tid) = channel();
        std::thread::spawn(move || {
            told.send(call::gettid()).expect("the starter waits");
            while let Ok(answer) = asked.recv() {
                let own = status_mask("SigPnd");
                let mut list = Vec::new();
                while let Some(info) = take(own) {
                    list.push(info);
                }
                answer.send(list).expect("the check waits");
            }
        });
        let thread = Self {
            tid: tid.recv().expect("the thread starts"),
            ask,
        };
        thread.send();
        thread
    }

    fn send(&self) {
        let own = std::process::id() as i32;
        for n in 0..4 {
            queue(own, Some(self.tid), 50, SI_QUEUE, 3000 + n);
        }
        // SAFETY: plain numbers.
        unsafe { libc::syscall(libc::SYS_tgkill, own, self.tid, libc::SIGIO) };
        // SAFETY: plain numbers.
        unsafe { libc::syscall(libc::SYS_tkill, self.tid, 51) };
    }

    fn drain(&self) -> Vec<Info> {
        let (answer, answered) = channel();
        self.ask.send(answer).expect("the thread lives");
        answered.recv().expect("the thread answers")
    }
}

fn compare(findings: &mut Findings, what: &str, before: &[Info], now: &[Info]) {
    let brief = |infos: &[Info]| {
        infos
            .iter()
            .map(|info| (number(info, 0), number(info, 2), words(info)))
            .collect::<Vec<_>>()
    };
    let (before, now) = (brief(before), brief(now));
    findings.same(
        format!("number of signals waiting for the {what}"),
        &before.len(),
        &now.len(),
    );
    for (before, now) in before.iter().zip(&now) {
        // The child that sent one is another one each time.
        let of_child = before.0 == 45 || before.0 == libc::SIGCHLD;
        let same =
            before == now || of_child && (before.0, before.1) == (now.0, now.1) && now.2[0] >> 32 == before.2[0] >> 32;
        findings.that(same, format!("for the {what}: was {before:x?}, is {now:x?}"));
    }
}

fn number(info: &Info, at: usize) -> i32 {
    i32::from_ne_bytes(info[at * 4..at * 4 + 4].try_into().expect("four bytes"))
}

fn words(info: &Info) -> Vec<u64> {
    let words = info[16..INFO]
        .chunks(8)
        .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")));
    words.collect()
}

fn queue(pid: i32, tid: Option<i32>, signal: i32, code: i32, value: u64) {
    let mut info: Info = [0; 128];
    info[0..4].copy_from_slice(&signal.to_ne_bytes());
    info[8..12].copy_from_slice(&code.to_ne_bytes());
    info[16..20].copy_from_slice(&4242_i32.to_ne_bytes());
    info[20..24].copy_from_slice(&777_u32.to_ne_bytes());
    info[24..32].copy_from_slice(&value.to_ne_bytes());
    let address = &raw const info as usize;
    let (call, args) = match tid {
        None => (libc::SYS_rt_sigqueueinfo, vec![pid as usize, signal as usize, address]),
        Some(tid) => (
            libc::SYS_rt_tgsigqueueinfo,
            vec![pid as usize, tid as usize, signal as usize, address],
        ),
    };
    // SAFETY: the kernel reads 128 bytes.
    unsafe { call::raw(call, &args) }.expect("queue a signal");
}

fn drain() -> Vec<Info> {
    let mut list = Vec::new();
    while let Some(info) = take(!0) {
        list.push(info);
    }
    list
}

fn take(mask: u64) -> Option<Info> {
    let mut info: Info = [0; 128];
    let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let args = [
        &raw const mask as usize,
        &raw mut info as usize,
        &raw const none as usize,
        8,
    ];
    // SAFETY: the kernel writes at most 128 bytes.
    unsafe { call::raw(libc::SYS_rt_sigtimedwait, &args) }
        .ok()
        .map(|_| info)
}

fn pending() -> u64 {
    status_mask("SigPnd") | status_mask("ShdPnd")
}

fn status_mask(key: &str) -> u64 {
    u64::from_str_radix(&victims::own::status(key), 16).unwrap_or(0)
}
