//! As many descriptors as may be had, up to 100,000, of mixed kinds: files, pipes with something in them, counters, timers,
//! sockets, devices, folders, epoll, and duplicates.

use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, IntoRawFd, RawFd},
        unix::net::UnixStream,
    },
    path::Path,
};
use victims::{
    Findings, Stage, call,
    descriptor::{borrowed, open, seek},
    play,
};

const MOST: u64 = 100_000;
/// What the victim itself needs for a check.
const FREE: u64 = 20;
/// Of each kind that takes memory of the kernel's that is limited elsewhere.
const FEW: usize = 1000;

fn main() {
    play(|stage| {
        let most = raise_limit();
        let mut all = Vec::new();
        let path = stage.path("file");
        fs::write(&path, "0123456789").expect("write");
        let next = |all: &Vec<One>| all.last().map_or(3, One::highest) + 1;
        while (next(&all) as u64) < most - FREE {
            let index = all.len();
            all.push(One::new(stage, &path, index));
        }
        move |findings: &mut Findings| {
            if findings.sabotage() {
                call::close(all[all.len() / 2].highest());
            }
            for (index, one) in all.iter().enumerate() {
                if !one.is_as_it_was(index) {
                    return findings.add(format!("{one:?}, number {index}, is not as it was"));
                }
            }
            findings.that(all.len() > 1000, format!("there are only {}", all.len()));
        }
    })
}

/// The highest number there may be, and one.
fn raise_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: room for the limit.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max.min(MOST);
    // SAFETY: reads the limit.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert!(got == 0 && set == 0, "raise the limit");
    limit.rlim_cur
}

#[derive(Debug)]
enum One {
    File(RawFd),
    Duplicate(RawFd),
    Pipe([RawFd; 2]),
    Counter(RawFd),
    Timer(RawFd),
    Sockets([RawFd; 2]),
    Device(RawFd),
    Folder(RawFd),
    Epoll(RawFd),
}

impl One {
    fn new(stage: &Stage, path: &Path, index: usize) -> Self {
        match index % 9 {
            0 => {
                let file = open(path, libc::O_RDONLY);
                seek(file, (index % 10) as i64, libc::SEEK_SET).expect("seek");
                Self::File(file)
            }
            1 if index < FEW => {
                let ends = call::pipe(libc::O_NONBLOCK);
                call::write(ends[1], &index.to_le_bytes()).expect("write");
                Self::Pipe(ends)
            }
            // SAFETY: plain numbers.
            2 => Self::Counter(unsafe { libc::eventfd(index as u32, libc::EFD_NONBLOCK) }),
            // SAFETY: plain numbers.
            3 => Self::Timer(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK) }),
            4 if index < FEW => {
                let (mut near, far) = UnixStream::pair().expect("a pair");
                near.write_all(&index.to_le_bytes()).expect("write");
                Self::Sockets([far.into_raw_fd(), near.into_raw_fd()])
            }
            5 => Self::Device(open(Path::new("/dev/zero"), libc::O_RDONLY)),
            6 => Self::Folder(open(stage.dir(), libc::O_RDONLY | libc::O_DIRECTORY)),
            // SAFETY: a number.
            7 if index < FEW => Self::Epoll(unsafe { libc::epoll_create1(0) }),
            // SAFETY: plain numbers.
            _ => Self::Duplicate(unsafe { libc::dup(0) }),
        }
    }

    fn highest(&self) -> RawFd {
        match self {
            Self::Pipe([one, other]) | Self::Sockets([one, other]) => *one.max(other),
            Self::File(fd) | Self::Duplicate(fd) | Self::Counter(fd) | Self::Timer(fd) => *fd,
            Self::Device(fd) | Self::Folder(fd) | Self::Epoll(fd) => *fd,
        }
    }

    /// What is read is written again.
    fn is_as_it_was(&self, index: usize) -> bool {
        let returns = |[from, to]: [RawFd; 2]| {
            let bytes = call::read(from, 8).unwrap_or_default();
            bytes == index.to_le_bytes() && call::write(to, &bytes).is_ok()
        };
        match self {
            Self::File(fd) => seek(*fd, 0, libc::SEEK_CUR).is_ok_and(|at| at == (index % 10) as i64),
            Self::Duplicate(fd) => same_file(*fd),
            Self::Pipe(ends) | Self::Sockets(ends) => returns(*ends),
            Self::Counter(fd) => {
                let count = call::read(*fd, 8).unwrap_or_default();
                count == (index as u64).to_ne_bytes() && call::write(*fd, &count).is_ok()
            }
            Self::Timer(fd) => call::read(*fd, 8).is_err_and(|error| error.raw_os_error() == Some(libc::EAGAIN)),
            Self::Device(fd) => {
                let mut byte = [1];
                borrowed(*fd).read_exact(&mut byte).is_ok() && byte == [0]
            }
            Self::Folder(fd) => borrowed(*fd).metadata().is_ok_and(|found| found.is_dir()),
            Self::Epoll(fd) => {
                let mut event = libc::epoll_event { events: 0, u64: 0 };
                // SAFETY: room for an event.
                (unsafe { libc::epoll_wait(borrowed(*fd).as_raw_fd(), &raw mut event, 1, 0) }) == 0
            }
        }
    }
}

/// Whether it is the victim's standard input.
fn same_file(fd: RawFd) -> bool {
    let own = std::process::id();
    // SAFETY: numbers.
    (unsafe { libc::syscall(libc::SYS_kcmp, own, own, 0, 0, fd) }) == 0
}
