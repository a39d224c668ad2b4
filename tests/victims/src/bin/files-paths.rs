//! Descriptors of O_PATH: of a file, a directory, a symbolic link, a fifo, a device, a socket, of what was deleted, and of a
//! memfd; shared with another process, and used as what they are for.

use std::{
    fs,
    os::{
        fd::RawFd,
        unix::{fs::MetadataExt, net::UnixListener},
    },
    path::Path,
};
use victims::{
    Findings, Peer, Stage, call,
    descriptor::{borrowed, open, place},
    pattern, play,
};

/// A descriptor, and what it must be.
struct Held {
    what: &'static str,
    fd: RawFd,
    flags: i32,
    link: String,
    /// Device and inode number, where it keeps them.
    identity: Option<(u64, u64)>,
    mode: u32,
}

impl Held {
    fn of(what: &'static str, path: &Path, flags: i32) -> Self {
        Self::at(what, open(path, libc::O_PATH | flags))
    }

    fn at(what: &'static str, fd: RawFd) -> Self {
        let (flags, link, identity, mode) = look(fd);
        Self {
            what,
            fd,
            flags,
            link,
            identity: Some(identity),
            mode,
        }
    }

    /// Of what was deleted meanwhile: another file takes its place.
    fn deleted(mut self) -> Self {
        self.identity = None;
        self.link = "(deleted)".to_owned();
        self
    }

    fn check(&self, findings: &mut Findings) {
        let (flags, link, identity, mode) = look(self.fd);
        findings.same(format!("flags of {}", self.what), &self.flags, &flags);
        findings.same(format!("mode of {}", self.what), &self.mode, &mode);
        let same_link = if self.link == "(deleted)" {
            link.ends_with(&self.link)
        } else {
            link == self.link
        };
        findings.that(same_link, format!("{} is {link}, was {}", self.what, self.link));
        if let Some(was) = self.identity {
            findings.same(format!("inode of {}", self.what), &was, &identity);
        }
    }
}

/// Flags, path, inode and mode.
fn look(fd: RawFd) -> (i32, String, (u64, u64), u32) {
    let flags = call::fcntl(fd, libc::F_GETFL, 0).unwrap_or(-1);
    let link = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
    let found = borrowed(fd).metadata();
    let (identity, mode) = found.map_or(((0, 0), 0), |found| ((found.dev(), found.ino()), found.mode()));
    (flags, link.display().to_string(), identity, mode)
}

fn main() {
    play(|stage| {
        let folder = stage.path("folder");
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join("inside"), pattern::bytes(3_000, 1)).expect("write");
        let mut held = named(stage, &folder);
        let listener = socket(stage, &mut held);
        held.extend(without_names(stage));
        place(held[0].fd, 120, libc::O_CLOEXEC);
        let fds: Vec<RawFd> = held.iter().map(|held| held.fd).collect();
        let peer = Peer::start(move |index| look(fds[index as usize]).0.into());
        move |findings: &mut Findings| {
            let _ = &listener;
            if findings.sabotage() {
                place(held[1].fd, held[2].fd, 0);
            }
            for (index, held) in held.iter().enumerate() {
                held.check(findings);
                let told = findings.take("ask the other process", peer.ask(index as i64));
                let what = format!("flags of {} in the other process", held.what);
                findings.same(what, &Some(i64::from(held.flags)), &told);
            }
            let read = fs::read(format!("/proc/self/fd/{}/inside", held[0].fd));
            findings.that(
                read.is_ok_and(|read| read == pattern::bytes(3_000, 1)),
                "the file in the folder",
            );
            let flag = call::fcntl(120, libc::F_GETFD, 0);
            findings.that(flag.is_ok_and(|flag| flag == libc::FD_CLOEXEC), "the duplicate");
            reads(findings, "the deleted file", &held, 700, 2);
            reads(findings, "the memfd", &held, 900, 3);
            let link = fs::read_link(format!("/proc/self/fd/{}", held[1].fd));
            findings.that(link.is_ok_and(|link| link.ends_with("link")), "the link is another one");
        }
    })
}

fn named(stage: &Stage, folder: &Path) -> Vec<Held> {
    let (link, fifo) = (stage.path("link"), stage.path("fifo"));
    std::os::unix::fs::symlink("nowhere", &link).expect("a link");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    vec![
        Held::of("a folder", folder, libc::O_DIRECTORY),
        Held::of("a link", &link, libc::O_NOFOLLOW),
        Held::of("a file", &folder.join("inside"), libc::O_NOFOLLOW | libc::O_CLOEXEC),
        Held::of("a fifo", &fifo, 0),
        Held::of("a device", Path::new("/dev/null"), 0),
        Held::of("the root", Path::new("/"), 0),
    ]
}

/// One that the victim itself listens at: it is made again with the socket.
fn socket(stage: &Stage, held: &mut Vec<Held>) -> UnixListener {
    let path = stage.path("socket");
    let listener = UnixListener::bind(&path).expect("listen");
    let mut own = Held::of("a socket", &path, 0);
    own.identity = None;
    held.push(own);
    listener
}

fn without_names(stage: &Stage) -> Vec<Held> {
    let (file, folder) = (stage.path("deleted file"), stage.path("deleted folder"));
    fs::write(&file, pattern::bytes(700, 2)).expect("write");
    fs::create_dir(&folder).expect("a folder");
    let held = [
        Held::of("the deleted file", &file, 0),
        Held::of("the deleted folder", &folder, libc::O_DIRECTORY),
    ];
    fs::remove_file(&file).expect("delete");
    fs::remove_dir(&folder).expect("delete");
    // SAFETY: a name that ends with a NUL.
    let memfd = unsafe { libc::memfd_create(c"paths".as_ptr(), 0) };
    call::write(memfd, &pattern::bytes(900, 3)).expect("write");
    let path = format!("/proc/self/fd/{memfd}");
    let of_memfd = Held::of("the memfd", Path::new(&path), 0);
    call::close(memfd);
    held.into_iter().chain([of_memfd]).map(Held::deleted).collect()
}

/// Opened by its O_PATH descriptor, it holds the pattern.
fn reads(findings: &mut Findings, what: &str, held: &[Held], len: usize, seed: u64) {
    let fd = held.iter().find(|held| held.what == what).map_or(-1, |held| held.fd);
    let read = fs::read(format!("/proc/self/fd/{fd}")).unwrap_or_default();
    findings.that(
        read == pattern::bytes(len, seed),
        format!("{what} holds {} bytes", read.len()),
    );
}
