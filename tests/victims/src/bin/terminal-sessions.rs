//! Terminals that control sessions: two leaders with one each, /dev/tty, the foreground group, job control, keys that
//! send signals; and a leader that has closed all its descriptors of its terminal.

use nix::{
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpgrp, setpgid, setsid, tcgetpgrp, tcsetpgrp},
};
use std::{
    path::Path,
    sync::atomic::{AtomicI32, Ordering},
};
use victims::{
    Findings, Seen, Stage, call,
    descriptor::open,
    play,
    pty::{Pty, borrow, command, ioctl, put, take},
    wait_until,
};

static INTERRUPTED: AtomicI32 = AtomicI32::new(0);
static RESIZED: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: i32) {
    let counter = if signal == libc::SIGINT { &INTERRUPTED } else { &RESIZED };
    counter.fetch_add(1, Ordering::SeqCst);
}

fn handle(signal: Signal) {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler only counts.
    unsafe { sigaction(signal, &action) }.expect("sigaction");
}

/// What a task sees of the terminal that controls it.
fn known(own: i32) -> (i32, i32, Option<String>) {
    let terminal = borrow(own);
    (
        tcgetpgrp(terminal).map_or(-1, Pid::as_raw),
        nix::sys::termios::tcgetsid(terminal).map_or(-1, Pid::as_raw),
        nix::unistd::ttyname(terminal)
            .ok()
            .map(|path| path.display().to_string()),
    )
}

/// In the foreground, in a group of its own: the keys' signals are for it.
fn foreground(stage: &Stage) -> i32 {
    stage.child("foreground", |_| {
        setpgid(Pid::from_raw(0), Pid::from_raw(0)).expect("a group of its own");
        handle(Signal::SIGINT);
        handle(Signal::SIGWINCH);
        let mut counts = [INTERRUPTED.load(Ordering::SeqCst), RESIZED.load(Ordering::SeqCst)];
        let before = counts;
        move |findings: &mut Findings| {
            // The leader types the keys and changes the size before each check.
            counts = counts.map(|count| count + 1);
            let now = || [INTERRUPTED.load(Ordering::SeqCst), RESIZED.load(Ordering::SeqCst)];
            let arrived = wait_until(|| now() == counts || findings.sabotage());
            findings.that(arrived, format!("signals {before:?}, then {counts:?}, are {:?}", now()));
        }
    })
}

/// Leads a session on the slave of `pty`, whose master it shares.
fn leader(stage: &Stage, pty: Pty) -> impl FnMut(&mut Findings) + use<> {
    setsid().expect("a session");
    command(pty.slave, libc::TIOCSCTTY, 0).expect("TIOCSCTTY");
    for signal in [libc::SIGTTOU, libc::SIGINT] {
        // SAFETY: ignores a signal.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let own = open(Path::new("/dev/tty"), libc::O_RDWR | libc::O_CLOEXEC);
    let group = foreground(stage);
    tcsetpgrp(borrow(own), Pid::from_raw(group)).expect("tcsetpgrp");
    // In the background: reading stops it.
    let reader = victims::stage::fork(|| {
        setpgid(Pid::from_raw(0), Pid::from_raw(0)).expect("a group of its own");
        loop {
            let _line = call::read(pty.slave, 100);
        }
    });
    let stopped = move || {
        let status = waitpid(Pid::from_raw(reader), Some(WaitPidFlag::WUNTRACED));
        status.expect("waitpid") == WaitStatus::Stopped(Pid::from_raw(reader), Signal::SIGTTIN)
    };
    assert!(stopped(), "a reader in the background is not stopped");
    let before = (known(own), known(pty.slave), Seen::of(own), getpgrp().as_raw());
    let mut rows = 10_u16;
    move |findings: &mut Findings| {
        if findings.sabotage() {
            tcsetpgrp(borrow(own), getpgrp()).expect("tcsetpgrp");
        }
        let mut now = (known(own), known(pty.slave), Seen::of(own), getpgrp().as_raw());
        (now.2.modified, now.2.size) = (before.2.modified, before.2.size);
        findings.same("the session's terminal", &before, &now);
        rows += 1;
        let window = [rows, 80, 0, 0];
        // SAFETY: `struct winsize` is four words.
        let status = unsafe { libc::ioctl(pty.master, libc::TIOCSWINSZ, window.as_ptr()) };
        findings.that(status == 0, "TIOCSWINSZ");
        put(pty.master, b"\x03");
        let _echo = take(pty.master, 2);
        // Woken in the background, the reader stops itself again.
        nix::sys::signal::kill(Pid::from_raw(reader), Signal::SIGCONT).expect("kill");
        findings.that(stopped(), "a reader in the background is not stopped any more");
    }
}

fn main() {
    play(|stage| {
        let (shown, closed) = (Pty::new(), Pty::new());
        stage.child("leader", |stage| leader(stage, shown));
        stage.child("closed", |_| {
            setsid().expect("a session");
            command(closed.slave, libc::TIOCSCTTY, 0).expect("TIOCSCTTY");
            call::close(closed.slave);
            let own_group = getpgrp().as_raw();
            move |findings: &mut Findings| {
                let again = open(Path::new("/dev/tty"), libc::O_RDWR | libc::O_CLOEXEC);
                let (group, session, _) = known(again);
                findings.same(
                    "the terminal without a descriptor",
                    &(own_group, own_group),
                    &(group, session),
                );
                call::close(again);
            }
        });
        call::close(closed.slave);
        move |findings: &mut Findings| {
            let session = |master| ioctl(master, libc::TIOCGSID, 0).ok();
            findings.that(
                session(shown.master).is_some() && session(closed.master).is_some(),
                "a master does not know whose session its terminal controls",
            );
        }
    })
}
