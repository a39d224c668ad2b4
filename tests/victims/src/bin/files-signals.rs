//! Files about which signals are sent: to the victim, to its group, to a child, by SIGIO and by a signal of their choice;
//! with the number of the file, and its owner also where none are sent.

use std::{os::fd::RawFd, time::Duration};
use victims::{Findings, Peer, call, play};

type Check = Box<dyn FnMut(&mut Findings)>;

const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
const F_GETOWNER_UIDS: i32 = 17;
const THREAD: i32 = 0;
const PROCESS: i32 = 1;
const GROUP: i32 = 2;

fn main() {
    let chosen = libc::SIGRTMIN() + 3;
    block(&[chosen, libc::SIGIO, libc::SIGUSR2]);
    play(|_| {
        let own = std::process::id() as i32;
        let mut checks: Vec<Check> = vec![
            Box::new(told(chosen, THREAD, own)),
            Box::new(told(chosen, PROCESS, own)),
            Box::new(told(libc::SIGUSR2, GROUP, own)),
            Box::new(by_the_usual_signal(own)),
            Box::new(of_a_child(chosen)),
            Box::new(silent(own)),
        ];
        move |findings: &mut Findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: a set of zeros is one; the numbers are signals.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

fn block(signals: &[i32]) {
    let set = set_of(signals);
    // SAFETY: the set is read.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

/// Number, and the file and the events that come with it; `None` where it does not come.
fn wait(signal: i32, time: Duration) -> Option<(i32, i32, i64)> {
    let set = set_of(&[signal]);
    let time = libc::timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    // SAFETY: all structures outlive the call.
    unsafe {
        let mut about: libc::siginfo_t = std::mem::zeroed();
        let number = libc::sigtimedwait(&raw const set, &raw mut about, &raw const time);
        let words = (&raw const about).cast::<i64>();
        // si_band and si_fd.
        (number > 0).then(|| (number, words.add(3).read() as i32, words.add(2).read()))
    }
}

fn own(file: RawFd, kind: i32, id: i32) {
    let owner = [kind, id];
    // SAFETY: struct f_owner_ex is read.
    call::checked(i64::from(unsafe { libc::fcntl(file, F_SETOWN_EX, owner.as_ptr()) })).expect("F_SETOWN_EX");
}

/// Kind and number of the owner, its users, and the signal.
fn setting(file: RawFd) -> ([i32; 2], [u32; 2], i32) {
    let (mut owner, mut users) = ([0; 2], [0; 2]);
    // SAFETY: room for both structures.
    unsafe {
        libc::fcntl(file, F_GETOWN_EX, owner.as_mut_ptr());
        libc::fcntl(file, F_GETOWNER_UIDS, users.as_mut_ptr());
    }
    (owner, users, call::fcntl(file, F_GETSIG, 0).unwrap_or(-1))
}

fn flags(file: RawFd) -> i32 {
    call::fcntl(file, libc::F_GETFL, 0).expect("F_GETFL")
}

fn told(signal: i32, kind: i32, id: i32) -> impl FnMut(&mut Findings) {
    let [read, write] = call::pipe(0);
    call::fcntl(read, F_SETSIG, signal).expect("F_SETSIG");
    own(read, kind, id);
    call::fcntl(read, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK).expect("F_SETFL");
    let before = (setting(read), flags(read));
    move |findings| {
        findings.same("setting", &before, &(setting(read), flags(read)));
        findings.same("signal before", &None, &wait(signal, Duration::ZERO));
        call::write(write, b"!").expect("write");
        let got = wait(signal, Duration::from_secs(20)).map(|(number, file, _)| (number, file));
        findings.same("signal, and its file", &Some((signal, read)), &got);
        call::read(read, 1).expect("read");
        // Reading makes room, of which the reader is told too.
        while wait(signal, Duration::ZERO).is_some() {}
    }
}

/// SIGIO, which tells nothing.
fn by_the_usual_signal(id: i32) -> impl FnMut(&mut Findings) {
    let [read, write] = call::pipe(0);
    call::fcntl(read, libc::F_SETOWN, id).expect("F_SETOWN");
    call::fcntl(read, libc::F_SETFL, libc::O_ASYNC).expect("F_SETFL");
    let before = (setting(read), flags(read));
    move |findings| {
        findings.same("setting", &before, &(setting(read), flags(read)));
        findings.same("signal before", &None, &wait(libc::SIGIO, Duration::ZERO));
        if findings.sabotage() {
            call::fcntl(read, libc::F_SETFL, 0).expect("F_SETFL");
        }
        call::write(write, b"!").expect("write");
        let got = wait(
            libc::SIGIO,
            Duration::from_secs(if findings.sabotage() { 0 } else { 20 }),
        );
        findings.same("SIGIO", &Some(libc::SIGIO), &got.map(|(number, ..)| number));
        call::read(read, 1).expect("read");
        while wait(libc::SIGIO, Duration::ZERO).is_some() {}
    }
}

/// A child is told of what the victim writes, by a socket.
fn of_a_child(signal: i32) -> impl FnMut(&mut Findings) {
    let mut ends = [0; 2];
    // SAFETY: room for two numbers.
    unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr()) };
    let [one, two] = ends;
    let child = Peer::start(move |_| {
        let got = wait(signal, Duration::from_secs(20));
        call::read(one, 1).expect("read");
        while wait(signal, Duration::ZERO).is_some() {}
        got.map_or(-1, |(_, file, _)| i64::from(file))
    });
    call::fcntl(one, F_SETSIG, signal).expect("F_SETSIG");
    own(one, PROCESS, child.pid);
    call::fcntl(one, libc::F_SETFL, libc::O_ASYNC).expect("F_SETFL");
    let before = setting(one);
    move |findings| {
        findings.same("setting", &before, &setting(one));
        call::write(two, b"!").expect("write");
        findings.same("file of the child's signal", &Some(i64::from(one)), &child.ask(0).ok());
    }
}

/// An owner of a file about which nothing is sent, set by another user; and a signal without an owner.
fn silent(id: i32) -> impl FnMut(&mut Findings) {
    let [read, write] = call::pipe(0);
    // SAFETY: users; the first one stays root.
    unsafe {
        libc::syscall(libc::SYS_setresuid, -1, 1234, -1);
        call::fcntl(read, libc::F_SETOWN, id).expect("F_SETOWN");
        libc::syscall(libc::SYS_setresuid, -1, 0, -1);
    }
    call::fcntl(write, F_SETSIG, libc::SIGUSR2).expect("F_SETSIG");
    let before = [setting(read), setting(write)];
    move |findings| {
        findings.same("who set it", &[0, 1234], &setting(read).1);
        findings.same("settings", &before, &[setting(read), setting(write)]);
    }
}
