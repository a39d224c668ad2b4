//! A thousand descriptors of all kinds in one process, at numbers up to the highest that may be had, and more deleted files
//! and pipes than most programs may have files open.

use std::{
    fs,
    os::{fd::RawFd, unix::fs::FileExt},
    path::Path,
};
use victims::{
    Findings, Peer, Seen, Stage, call,
    descriptor::{borrowed, open, place, seek},
    play,
};

const EACH: usize = 300;

fn main() {
    play(|stage| {
        let highest = raise_limit();
        let mut all: Vec<RawFd> = Vec::new();
        let deleted = files(stage, "deleted", true);
        let named = files(stage, "named", false);
        let mut pipes = pipes();
        all.extend(deleted.iter().chain(&named));
        all.extend(pipes.iter().flatten());
        all.extend((0..EACH).map(|_| open(Path::new("/dev/null"), libc::O_WRONLY)));
        all.extend((0..EACH).map(|_| open(stage.dir(), libc::O_RDONLY | libc::O_CLOEXEC)));
        spread(&mut pipes, &mut all, highest);
        // The writers are another process's.
        let writers: Vec<RawFd> = pipes.iter().map(|[_, write]| *write).collect();
        let held = writers.clone();
        let peer = Peer::start(move |number| {
            let wrote = held
                .iter()
                .filter(|fd| call::write(**fd, &number.to_le_bytes()).is_ok())
                .count();
            wrote as i64
        });
        writers.iter().for_each(|fd| call::close(*fd));
        all.retain(|fd| !writers.contains(fd));
        let seen: Vec<Seen> = all.iter().map(|fd| Seen::of(*fd)).collect();
        let mut round = 0;
        move |findings: &mut Findings| {
            round += 1;
            if findings.sabotage() {
                call::close(all[all.len() / 2]);
            }
            for (fd, seen) in all.iter().zip(&seen) {
                let (mut seen, now) = (*seen, call::fcntl(*fd, libc::F_GETFD, 0).map(|_| Seen::of(*fd)));
                if seen.mode & libc::S_IFMT != libc::S_IFREG
                    && let Ok(now) = &now
                {
                    (seen.modified, seen.size) = (now.modified, now.size);
                }
                findings.that(
                    now.as_ref().ok() == Some(&seen),
                    format!("{fd}: was {seen:?}, is {now:?}"),
                );
            }
            for (number, fd) in deleted.iter().chain(&named).enumerate() {
                findings.that(
                    content(*fd) == (number % EACH) as u64,
                    format!("the file of {fd} is another one"),
                );
            }
            findings.same("writes of the other process", &Some(EACH as i64), &peer.ask(round).ok());
            for [read, _] in &pipes {
                let bytes = call::read(*read, 8).unwrap_or_default();
                findings.that(bytes == round.to_le_bytes(), format!("pipe {read} holds {bytes:?}"));
            }
        }
    })
}

/// The highest number there may be from now on.
fn raise_limit() -> RawFd {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: room for the limit.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max.min(60_001);
    // SAFETY: reads the limit.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert!(got == 0 && set == 0, "raise the limit");
    limit.rlim_cur as RawFd - 1
}

fn files(stage: &Stage, name: &str, deleted: bool) -> Vec<RawFd> {
    let one = |number: usize| {
        let path = stage.path(&format!("{name} {number}"));
        fs::write(&path, (number as u64).to_le_bytes()).expect("write");
        let fd = open(&path, libc::O_RDWR);
        if deleted {
            fs::remove_file(&path).expect("delete");
        }
        seek(fd, number as i64, libc::SEEK_SET).expect("seek");
        fd
    };
    (0..EACH).map(one).collect()
}

fn content(fd: RawFd) -> u64 {
    let mut bytes = [0; 8];
    borrowed(fd)
        .read_exact_at(&mut bytes, 0)
        .map_or(u64::MAX, |()| u64::from_le_bytes(bytes))
}

fn pipes() -> Vec<[RawFd; 2]> {
    (0..EACH).map(|_| call::pipe(libc::O_NONBLOCK)).collect()
}

/// Moves the pipes' readers to numbers far apart, the last of them to the highest.
fn spread(pipes: &mut [[RawFd; 2]], all: &mut [RawFd], highest: RawFd) {
    let step = (highest - 5_000) / EACH as RawFd;
    for (index, pipe) in pipes.iter_mut().enumerate() {
        let number = highest - index as RawFd * step;
        place(pipe[0], number, 0);
        call::close(pipe[0]);
        let known = all.iter_mut().find(|fd| **fd == pipe[0]).expect("it is listed");
        (*known, pipe[0]) = (number, number);
    }
}
