//! What is to be done on each of the 64 signals: handler, flags, mask, restorer, as the kernel keeps them.

use std::sync::atomic::{AtomicU32, Ordering};
use victims::{Findings, call, play};

/// The kernel's own struct sigaction of this architecture (asm/signal.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Action {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: i32) {
    COUNT.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn count_by_ten(_: i32) {
    COUNT.fetch_add(10, Ordering::SeqCst);
}

/// SA_RESTORER (asm/signal.h), which libc lacks.
const RESTORER: u64 = 0x0400_0000;
const NO_CHILD_WAIT: u64 = libc::SA_NOCLDWAIT as u64 | libc::SA_NOCLDSTOP as u64;

fn main() {
    play(|_| {
        let restorer = restorer();
        for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
            set(signal, &wanted(signal, restorer));
        }
        let before: Vec<Action> = (1..=64).map(get).collect();
        move |findings: &mut Findings| {
            if findings.sabotage() {
                set(libc::SIGUSR2, &Action::default());
            }
            for signal in 1..=64 {
                findings.same(
                    format!("action of signal {signal}"),
                    &before[signal as usize - 1],
                    &get(signal),
                );
            }
            COUNT.store(0, Ordering::SeqCst);
            let own = std::process::id() as i32;
            for signal in [libc::SIGUSR1, 35, 64] {
                findings.take("kill", call::kill(own, signal));
            }
            findings.same("calls of the handlers", &12, &COUNT.load(Ordering::SeqCst));
            // With SIG_DFL and SA_NOCLDWAIT a child leaves no zombie.
            let child = victims::stage::fork(|| ());
            let gone = victims::wait_until(|| call::kill(child, 0).is_err());
            findings.that(gone, "a child became a zombie in spite of SA_NOCLDWAIT");
        }
    })
}

fn wanted(signal: i32, restorer: usize) -> Action {
    let own_restorer = RESTORER;
    let mask = 1 << (signal % 31) | 1 << 40;
    match signal {
        libc::SIGCHLD => Action {
            handler: libc::SIG_DFL,
            flags: NO_CHILD_WAIT,
            ..Action::default()
        },
        libc::SIGPIPE | libc::SIGTTOU => Action {
            handler: libc::SIG_IGN,
            ..Action::default()
        },
        libc::SIGHUP => Action {
            handler: libc::SIG_IGN,
            flags: libc::SA_RESTART as u64,
            mask,
            ..Action::default()
        },
        libc::SIGWINCH => Action {
            handler: libc::SIG_DFL,
            flags: libc::SA_NODEFER as u64,
            mask,
            ..Action::default()
        },
        35 => Action {
            handler: count_by_ten as *const () as usize,
            flags: own_restorer | libc::SA_NODEFER as u64,
            restorer,
            mask,
        },
        _ => {
            let extra = [libc::SA_RESTART, libc::SA_SIGINFO, libc::SA_ONSTACK, 0][signal as usize % 4] as u64;
            Action {
                handler: count as *const () as usize,
                flags: own_restorer | extra,
                restorer,
                mask,
            }
        }
    }
}

/// The C library's own restorer, found in an action that it set.
fn restorer() -> usize {
    // SAFETY: a handler of the right type.
    unsafe { libc::signal(libc::SIGUSR1, count as *const () as usize) };
    get(libc::SIGUSR1).restorer
}

fn get(signal: i32) -> Action {
    let mut action = Action::default();
    let args = [signal as usize, 0, &raw mut action as usize, 8];
    // SAFETY: the kernel writes one struct.
    unsafe { call::raw(libc::SYS_rt_sigaction, &args) }.expect("rt_sigaction");
    action
}

fn set(signal: i32, action: &Action) {
    let args = [signal as usize, &raw const *action as usize, 0, 8];
    // SAFETY: the kernel reads one struct; handler and restorer are functions of the right kind.
    unsafe { call::raw(libc::SYS_rt_sigaction, &args) }.expect("rt_sigaction");
}
