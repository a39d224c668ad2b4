//! Files whose name was deleted while they have another one: in the same folder, in one beside it, far away; opened, mapped,
//! and shared with another process. What is written through one shows in the other.

use std::{
    fs,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::PathBuf,
};
use victims::{
    Findings, Peer, Stage,
    descriptor::{borrowed, open, seek},
    memory::{Mapping, PAGE},
    pattern, play,
};

/// An open file, and the name that is left.
struct Linked {
    what: &'static str,
    fd: RawFd,
    name: PathBuf,
}

fn main() {
    play(|stage| {
        let all: Vec<Linked> = [
            ("in the same folder", "place/first", "place/second"),
            ("in a folder beside", "tmp/message", "new/message"),
            ("far away", "here/file", "there/deep/down/file"),
        ]
        .into_iter()
        .map(|(what, from, to)| linked(stage, what, from, to))
        .collect();
        let mapped = mapped(stage);
        let fds: Vec<RawFd> = all.iter().map(|linked| linked.fd).collect();
        let peer = Peer::start(move |index| seek(fds[index as usize], 1, libc::SEEK_CUR).unwrap_or(-1));
        let mut round = 0_u8;
        move |findings: &mut Findings| {
            round += 1;
            for (index, linked) in all.iter().enumerate() {
                if findings.sabotage() {
                    fs::remove_file(&linked.name).expect("delete");
                    fs::write(&linked.name, b"another").expect("write");
                }
                let position = seek(linked.fd, 0, libc::SEEK_CUR).unwrap_or(-1);
                let told = findings.take("ask the other process", peer.ask(index as i64));
                findings.same(format!("position {}", linked.what), &Some(position + 1), &told);
                linked.check(findings, round);
            }
            mapped.check(findings, round);
        }
    })
}

fn linked(stage: &Stage, what: &'static str, from: &str, to: &str) -> Linked {
    let (from, name) = (stage.path(from), stage.path(to));
    for path in [&from, &name] {
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
    }
    fs::write(&from, pattern::bytes(5_000, 1)).expect("write");
    let fd = open(&from, libc::O_RDWR);
    fs::hard_link(&from, &name).expect("link");
    fs::remove_file(&from).expect("delete");
    Linked { what, fd, name }
}

impl Linked {
    fn check(&self, findings: &mut Findings, round: u8) {
        let identity =
            |found: std::io::Result<fs::Metadata>| found.map(|found| (found.dev(), found.ino(), found.nlink())).ok();
        let (by_fd, by_name) = (
            identity(borrowed(self.fd).metadata()),
            identity(fs::metadata(&self.name)),
        );
        findings.that(
            by_fd == by_name && by_fd.is_some_and(|(_, _, links)| links == 1),
            format!("{}: {by_fd:?} is open, {by_name:?} is there", self.what),
        );
        borrowed(self.fd).write_all_at(&[round], 77).expect("write");
        let read = fs::read(&self.name).unwrap_or_default();
        findings.same(format!("what was written {}", self.what), &Some(&round), &read.get(77));
    }
}

struct Mapped {
    memory: Mapping,
    name: PathBuf,
}

fn mapped(stage: &Stage) -> Mapped {
    let (from, name) = (stage.path("mapped here/file"), stage.path("mapped/far/away/file"));
    for path in [&from, &name] {
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
    }
    fs::write(&from, pattern::bytes(2 * PAGE, 4)).expect("write");
    let file = fs::File::options().read(true).write(true).open(&from).expect("open");
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let memory = Mapping::new(2 * PAGE, protection, libc::MAP_SHARED, file.as_raw_fd(), 0);
    fs::hard_link(&from, &name).expect("link");
    fs::remove_file(&from).expect("delete");
    Mapped { memory, name }
}

impl Mapped {
    fn check(&self, findings: &mut Findings, round: u8) {
        self.memory.write(PAGE + 5, &[round]);
        let read = fs::read(&self.name).unwrap_or_default();
        findings.same("what was written to memory", &Some(&round), &read.get(PAGE + 5));
        findings.that(
            read.get(..PAGE) == Some(&pattern::bytes(2 * PAGE, 4)[..PAGE]),
            "the mapped file differs",
        );
    }
}
