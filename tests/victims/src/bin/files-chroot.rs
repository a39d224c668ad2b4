//! A process with a root directory of its own: its files and directories are those it had; its program lies outside.

use std::{fs, io, os::fd::RawFd, os::unix::fs::chroot, path::Path};
use victims::{
    Findings, Peer, Seen, call,
    descriptor::{compare_content, open},
    pattern, play,
};

/// What the process in its own root has open: what, number, content.
type Held = Vec<(&'static str, RawFd, Seen, u64)>;

fn main() {
    play(|stage| {
        let root = stage.path("root");
        fs::create_dir_all(root.join("inner/deep")).expect("folders");
        fs::write(root.join("inner/file"), pattern::bytes(3_000, 1)).expect("write");
        let outside = open(&root.join("inner/file"), libc::O_RDONLY);
        let [report_read, report_write] = call::pipe(libc::O_NONBLOCK);
        let mut held: Option<Held> = None;
        let peer = Peer::start(move |sabotage| {
            let mut findings = Findings::new(sabotage == 1);
            match &held {
                None => held = Some(make(&root, outside).expect("the state")),
                Some(held) => check(&mut findings, held),
            }
            let text = findings.verdict();
            call::write(report_write, text.as_bytes()).map_or(-1, |bytes| bytes as i64)
        });
        let ask = move |sabotage: bool| -> io::Result<String> {
            let bytes = peer.ask(i64::from(sabotage))?;
            let text = call::read(report_read, bytes.max(0) as usize)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        assert_eq!(ask(false).expect("ask the process"), "ok");
        move |findings: &mut Findings| {
            if let Some(verdict) = findings.take("ask the process", ask(findings.sabotage())) {
                findings.that(verdict == "ok", verdict);
            }
        }
    })
}

fn make(root: &Path, outside: RawFd) -> io::Result<Held> {
    chroot(root)?;
    std::env::set_current_dir("/inner/deep")?;
    let inside = open(Path::new("/inner/file"), libc::O_RDWR);
    let relative = open(Path::new("../file"), libc::O_RDONLY);
    let directory = open(Path::new("/inner"), libc::O_RDONLY);
    fs::write("/inner/deleted", pattern::bytes(3_000, 2))?;
    let deleted = open(Path::new("/inner/deleted"), libc::O_RDWR);
    fs::remove_file("/inner/deleted")?;
    let note = |what, fd, seed| (what, fd, Seen::of(fd), seed);
    Ok(vec![
        note("inside", inside, 1),
        note("relative", relative, 1),
        note("outside", outside, 1),
        note("deleted", deleted, 2),
        note("directory", directory, 0),
    ])
}

fn check(findings: &mut Findings, held: &Held) {
    if findings.sabotage() {
        fs::write("/inner/file", b"other").expect("write");
    }
    for (what, fd, seen, seed) in held {
        seen.compare(findings, what, *fd);
        if *seed > 0 {
            compare_content(findings, what, *fd, 0, 3_000, *seed);
        }
    }
    let directory = std::env::current_dir().unwrap_or_default();
    findings.same("working directory", Path::new("/inner/deep"), &directory);
    let listing = fs::read_dir("/").map(|entries| entries.flatten().map(|entry| entry.file_name()).collect::<Vec<_>>());
    findings.that(
        listing.is_ok_and(|names| names == ["inner"]),
        "the root directory is another one",
    );
}
