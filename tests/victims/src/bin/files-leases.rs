//! Leases on files: for reading and for writing, with the signal that they send; each is noticed by another process that
//! opens the file, and the holder is told, with the number of the descriptor.

use std::{os::fd::RawFd, path::PathBuf};
use victims::{
    Findings, Peer, Stage, call,
    descriptor::{open, try_open},
    play,
};

const F_SETLEASE: i32 = 1024;
const F_GETLEASE: i32 = 1025;
const F_SETSIG: i32 = 10;

/// A descriptor with a lease.
struct Leased {
    fd: RawFd,
    path: PathBuf,
    kind: i32,
    signal: i32,
    opened: i32,
}

fn main() {
    let signals = [libc::SIGRTMIN() + 5, libc::SIGRTMIN() + 6];
    block(&signals);
    play(|stage| {
        let leased = [
            leased(stage, "for reading", libc::F_RDLCK, signals[0]),
            leased(stage, "for writing", libc::F_WRLCK, signals[1]),
        ];
        let tries: Vec<(PathBuf, i32)> = leased
            .iter()
            .map(|leased| (leased.path.clone(), leased.opened))
            .collect();
        // Another process, which does not wait for the lease's end.
        let peer = Peer::start(move |index| {
            let (path, flags) = &tries[index as usize];
            let opened = try_open(path, flags | libc::O_NONBLOCK);
            opened.map_or_else(
                |error| i64::from(error.raw_os_error().unwrap_or(0)),
                |fd| {
                    call::close(fd);
                    0
                },
            )
        });
        move |findings: &mut Findings| {
            for (index, leased) in leased.iter().enumerate() {
                if findings.sabotage() {
                    call::fcntl(leased.fd, F_SETLEASE, libc::F_UNLCK).expect("release");
                }
                findings.same(
                    "the lease",
                    &Some(leased.kind),
                    &call::fcntl(leased.fd, F_GETLEASE, 0).ok(),
                );
                let told = findings.take("ask the other process", peer.ask(index as i64));
                findings.same(
                    "what the other process gets",
                    &Some(i64::from(libc::EWOULDBLOCK)),
                    &told,
                );
                let (signal, fd) = wait_for(&signals);
                findings.same("the signal, and whose", &(leased.signal, leased.fd), &(signal, fd));
                call::fcntl(leased.fd, F_SETLEASE, libc::F_UNLCK).expect("release");
                take(leased.fd, leased.kind, leased.signal);
            }
        }
    })
}

fn leased(stage: &Stage, name: &str, kind: i32, signal: i32) -> Leased {
    let path = stage.path(name);
    std::fs::write(&path, name).expect("write");
    let (own, opened) = if kind == libc::F_RDLCK {
        (libc::O_RDONLY, libc::O_WRONLY)
    } else {
        (libc::O_RDWR, libc::O_RDONLY)
    };
    let fd = open(&path, own);
    take(fd, kind, signal);
    Leased {
        fd,
        path,
        kind,
        signal,
        opened,
    }
}

/// To release one resets the signal.
fn take(fd: RawFd, kind: i32, signal: i32) {
    call::fcntl(fd, F_SETSIG, signal).expect("choose the signal");
    call::fcntl(fd, F_SETLEASE, kind).expect("take a lease");
}

fn block(signals: &[i32]) {
    // SAFETY: a set of its own, which is initialised first.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// The next of these signals, and the descriptor that it is about.
fn wait_for(signals: &[i32]) -> (i32, RawFd) {
    // SAFETY: a set and an information of its own.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        let mut told: libc::siginfo_t = std::mem::zeroed();
        let wait = libc::timespec { tv_sec: 10, tv_nsec: 0 };
        let signal = libc::sigtimedwait(&raw const set, &raw mut told, &raw const wait);
        // si_fd of SIGPOLL's information: behind si_band, 24 bytes in.
        let fd = *(&raw const told).cast::<i32>().add(6);
        (signal, fd)
    }
}
