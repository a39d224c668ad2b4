//! Regular files: flags, positions, names of all sorts, close-on-exec, numbers with gaps up to the limit; O_DIRECT where
//! the filesystem has it; a position beyond 4 GiB.

use std::{
    ffi::OsStr,
    fs,
    os::{fd::RawFd, unix::ffi::OsStrExt},
};
use victims::{
    Findings, Seen, Stage, call,
    descriptor::{compare_content, open, place, seek, try_open},
    pattern, play,
};

const LEN: usize = 10_000;

const FLAGS: [(&str, i32); 12] = [
    ("read", libc::O_RDONLY),
    ("write", libc::O_WRONLY),
    ("both", libc::O_RDWR),
    ("append", libc::O_RDWR | libc::O_APPEND),
    ("nonblock", libc::O_RDONLY | libc::O_NONBLOCK),
    ("sync", libc::O_RDWR | libc::O_SYNC),
    ("dsync", libc::O_RDWR | libc::O_DSYNC),
    ("noatime", libc::O_RDONLY | libc::O_NOATIME),
    ("nofollow", libc::O_RDONLY | libc::O_NOFOLLOW),
    ("created", libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC),
    (
        "everything",
        libc::O_RDWR | libc::O_APPEND | libc::O_SYNC | libc::O_NONBLOCK | libc::O_NOATIME,
    ),
    ("direct", libc::O_RDWR | libc::O_DIRECT),
];

const NAMES: [&[u8]; 8] = [
    b"with space",
    b"with\nnewline",
    b"with\\backslash\\012",
    "\u{fc}n\u{ef}c\u{f6}d\u{e9} \u{2603}".as_bytes(),
    b"not utf-8 \xff\xfe",
    b"kept (deleted)",
    b"(deleted)",
    b"kept (deleted) (deleted)",
];

struct Opened {
    what: String,
    fd: RawFd,
    seed: Option<u64>,
    seen: Seen,
}

fn main() {
    play(|stage| {
        let mut all = by_flags(stage);
        all.extend(by_name(stage));
        all.extend(by_number(stage));
        all.push(empty(stage));
        all.push(large(stage));
        // O_TRUNC has changed what was seen before it.
        all.iter_mut().for_each(|file| file.seen = Seen::of(file.fd));
        move |findings: &mut Findings| {
            if findings.sabotage() {
                seek(all[2].fd, 1, libc::SEEK_CUR).expect("seek");
            }
            for file in &all {
                file.seen.compare(findings, &file.what, file.fd);
                let readable = file.seen.flags & libc::O_ACCMODE != libc::O_WRONLY;
                if let (Some(seed), true) = (file.seed, readable) {
                    let direct = file.seen.flags & libc::O_DIRECT != 0;
                    if !direct {
                        compare_content(findings, &file.what, file.fd, 0, LEN, seed);
                    }
                }
            }
        }
    })
}

fn note(what: impl Into<String>, fd: RawFd, seed: Option<u64>) -> Opened {
    Opened {
        what: what.into(),
        fd,
        seed,
        seen: Seen::of(fd),
    }
}

fn by_flags(stage: &Stage) -> Vec<Opened> {
    let mut all = Vec::new();
    for (number, (name, flags)) in FLAGS.into_iter().enumerate() {
        let path = stage.path(&format!("flags-{name}"));
        fs::write(&path, pattern::bytes(LEN, number as u64)).expect("write");
        for close_on_exec in [0, libc::O_CLOEXEC] {
            let fd = match try_open(&path, flags | close_on_exec) {
                Err(error) if flags & libc::O_DIRECT != 0 && error.raw_os_error() == Some(libc::EINVAL) => continue,
                result => result.unwrap_or_else(|error| panic!("open {name}: {error}")),
            };
            let seed = (flags & libc::O_TRUNC == 0).then_some(number as u64);
            seek(fd, 100 + number as i64, libc::SEEK_SET).expect("seek");
            all.push(note(name, fd, seed));
        }
    }
    all
}

fn by_name(stage: &Stage) -> Vec<Opened> {
    let folder = stage.path("a folder (deleted)");
    fs::create_dir(&folder).expect("a folder");
    let open_one = |(number, name): (usize, &[u8])| {
        let path = folder.join(OsStr::from_bytes(name));
        fs::write(&path, pattern::bytes(LEN, 50 + number as u64)).expect("write");
        let fd = open(&path, libc::O_RDWR);
        note(String::from_utf8_lossy(name), fd, Some(50 + number as u64))
    };
    NAMES.into_iter().enumerate().map(open_one).collect()
}

/// Numbers with gaps, and the highest one that the soft limit allows.
fn by_number(stage: &Stage) -> Vec<Opened> {
    let path = stage.path("numbers");
    fs::write(&path, pattern::bytes(LEN, 70)).expect("write");
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: room for the limit.
    let status = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert!(status == 0, "getrlimit");
    let highest = limit.rlim_cur.min(60_000) as RawFd - 1;
    let numbers = [99, 100, 255, 256, 257, 1_000, highest - 1, highest];
    let open_one = |number: RawFd| {
        let fd = open(&path, libc::O_RDONLY);
        place(fd, number, if number % 2 == 0 { libc::O_CLOEXEC } else { 0 });
        call::close(fd);
        seek(number, i64::from(number % 5_000), libc::SEEK_SET).expect("seek");
        note(format!("number {number}"), number, Some(70))
    };
    numbers.into_iter().map(open_one).collect()
}

fn empty(stage: &Stage) -> Opened {
    let path = stage.path("empty");
    fs::write(&path, b"").expect("write");
    let fd = open(&path, libc::O_RDWR);
    seek(fd, 1 << 40, libc::SEEK_SET).expect("seek behind the end");
    note("empty", fd, None)
}

fn large(stage: &Stage) -> Opened {
    let fd = open(&stage.path("large"), libc::O_RDWR | libc::O_CREAT);
    seek(fd, 5 << 30, libc::SEEK_SET).expect("seek");
    call::write(fd, b"behind 5 GiB").expect("write");
    seek(fd, (4 << 30) + 7, libc::SEEK_SET).expect("seek");
    note("large", fd, None)
}
