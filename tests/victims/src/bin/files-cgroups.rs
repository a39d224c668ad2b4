//! Files of cgroups: of the victim's own, also in part read and by O_PATH; its directory; and those of the first one.

use std::{
    fs::{self, File},
    io::{Read, Seek},
    os::{
        fd::{AsRawFd, FromRawFd, RawFd},
        unix::fs::FileExt,
    },
};
use victims::{
    Findings, Seen,
    cgroup::{own_below, version_2},
    descriptor::{borrowed, entries, open, seek},
    play,
};

fn main() {
    play(|_| {
        let top = version_2().expect("version 2");
        let own = own_below(&top).expect("a cgroup that has this process");
        let procs = open(&own.join("cgroup.procs"), libc::O_RDWR);
        // SAFETY: just opened, and closed nowhere else.
        let mut part = unsafe { File::from_raw_fd(open(&own.join("cgroup.procs"), libc::O_RDONLY)) };
        part.read_exact(&mut [0; 1]).expect("a number");
        let events = open(&own.join("cgroup.events"), libc::O_RDONLY);
        let limit = open(&own.join("cgroup.max.depth"), libc::O_WRONLY);
        let path = open(&own.join("cgroup.procs"), libc::O_PATH);
        let folder = open(&own, libc::O_RDONLY | libc::O_DIRECTORY);
        let controllers = open(&top.join("cgroup.controllers"), libc::O_RDONLY);
        let all = [procs, part.as_raw_fd(), events, limit, path, folder, controllers];
        let shown = |fd: &RawFd| {
            let Seen {
                flags, position, mode, ..
            } = Seen::of(*fd);
            (flags, position, mode)
        };
        let before: Vec<_> = all.iter().map(shown).collect();
        let listed = list(folder);
        let known = text(controllers);
        move |findings: &mut Findings| {
            if findings.sabotage() {
                part.rewind().expect("seek");
            }
            findings.same("files", &before, &all.iter().map(shown).collect());
            let own = std::process::id().to_string();
            // By the file that it had before: in another sandbox that is another cgroup.
            findings.that(has(&text(procs), &own), format!("the cgroup has {:?}", text(procs)));
            findings.that(text(events).contains("populated 1"), text(events));
            let mut rest = String::new();
            findings.take("read the rest", part.read_to_string(&mut rest));
            findings.same("the rest", &text(procs)[1..], rest.as_str());
            part.seek(std::io::SeekFrom::Start(1)).expect("seek");
            findings.take("set a limit", borrowed(limit).write_all_at(b"max", 0));
            let again = fs::read_to_string(format!("/proc/self/fd/{path}")).unwrap_or_default();
            findings.that(has(&again, &own), format!("by O_PATH it has {again:?}"));
            findings.same("names in its directory", &listed, &list(folder));
            findings.same("controllers", &known, &text(controllers));
        }
    })
}

fn has(procs: &str, pid: &str) -> bool {
    procs.lines().any(|line| line == pid)
}

fn text(fd: RawFd) -> String {
    let mut bytes = [0; 4096];
    let length = borrowed(fd).read_at(&mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

fn list(folder: RawFd) -> Vec<String> {
    seek(folder, 0, libc::SEEK_SET).expect("seek");
    let mut names = entries(folder, 1 << 16).unwrap_or_default();
    seek(folder, 0, libc::SEEK_SET).expect("seek");
    names.sort();
    names
}
