//! Directories: the read position in the middle of a listing, shared with a duplicate; flags; openat relative to one.

use std::{fs, os::fd::RawFd};
use victims::{
    Findings, Seen, Stage,
    descriptor::{entries, open, seek},
    play,
};

const FILES: usize = 2_000;

fn main() {
    play(|stage| {
        let mut rest = listing(stage);
        let plain = open(&stage.path("many"), libc::O_RDONLY);
        let seen = [(rest.fd, Seen::of(rest.fd)), (plain, Seen::of(plain))];
        move |findings: &mut Findings| {
            for (fd, seen) in &seen {
                let mut now = Seen::of(*fd);
                now.position = seen.position;
                findings.that(*seen == now, format!("directory {fd}: was {seen:?}, is {now:?}"));
            }
            if findings.sabotage() {
                entries(rest.fd, 2048).expect("getdents64");
            }
            let names = entries(rest.fd, 2048).expect("getdents64");
            findings.that(!names.is_empty(), "the listing is at its end");
            let expected: Vec<&String> = rest.names.iter().take(names.len()).collect();
            findings.that(
                names.iter().eq(expected),
                format!(
                    "the listing goes on with {:?}, not with {:?}",
                    names.first(),
                    rest.names.first()
                ),
            );
            rest.names.drain(..names.len().min(rest.names.len()));
            let whole = whole(plain);
            findings.same("entries of the whole listing", &(FILES + 2), &whole.len());
        }
    })
}

/// A directory that was read in part, and what is still to come.
struct Listing {
    fd: RawFd,
    names: Vec<String>,
}

fn listing(stage: &Stage) -> Listing {
    let folder = stage.path("many");
    fs::create_dir(&folder).expect("a folder");
    for number in 0..FILES {
        fs::write(folder.join(format!("entry {number}")), b"").expect("a file");
    }
    let fd = open(
        &folder,
        libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC | libc::O_NONBLOCK,
    );
    let mut names = whole(fd);
    seek(fd, 0, libc::SEEK_SET).expect("rewind");
    let read = entries(fd, 2048).expect("getdents64");
    assert!(read.len() < names.len(), "a listing in parts");
    names.drain(..read.len());
    Listing { fd, names }
}

/// All entries, from the beginning; leaves the position at the beginning.
fn whole(fd: RawFd) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let names = entries(fd, 2048).expect("getdents64");
        if names.is_empty() {
            seek(fd, 0, libc::SEEK_SET).expect("rewind");
            return all;
        }
        all.extend(names);
    }
}
