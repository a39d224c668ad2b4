//! Directories that were deleted: open, also one within another and twice; as working directory, and as root directory of
//! others; in each nothing can be made, and each keeps who owns it, its permissions, times and attributes.

use std::{
    env, fs, io,
    os::{fd::RawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};
use victims::{
    Findings, Peer, Seen, Stage, call,
    descriptor::{borrowed, open, try_open},
    play,
};

fn main() {
    play(|stage| {
        let outer = made(stage, "outer");
        let inner = made(stage, "outer/inner");
        let again = open(&stage.path("outer"), libc::O_RDONLY | libc::O_CLOEXEC);
        attributes(outer);
        let home = stage.path("home");
        let jail = stage.path("jail");
        fs::create_dir(&home).expect("a folder");
        fs::create_dir(&jail).expect("a folder");
        let mut wanderers = [in_folder(&home), in_root(&jail)];
        for path in ["outer/inner", "outer", "home", "jail"] {
            fs::remove_dir(stage.path(path)).expect("delete");
        }
        // Its name is taken by something else.
        fs::write(stage.path("home"), "").expect("a file");
        let seen: Vec<(&str, RawFd, Seen)> = [("outer", outer), ("inner", inner), ("outer, once more", again)]
            .map(|(what, fd)| (what, fd, Seen::of(fd)))
            .into();
        let links: Vec<PathBuf> = seen.iter().map(|(_, fd, _)| link(*fd)).collect();
        let peer = Peer::start(move |fd| makes_nothing(fd as RawFd).into());
        move |findings: &mut Findings| {
            if findings.sabotage() {
                victims::descriptor::place(outer, inner, 0);
            }
            for ((what, fd, seen), was) in seen.iter().zip(&links) {
                seen.compare(findings, what, *fd);
                findings.that(makes_nothing(*fd), format!("a file can be made in {what}"));
                let told = findings.take("ask the other process", peer.ask((*fd).into()));
                findings.same(format!("the same of the other process, {what}"), &Some(1), &told);
                findings.same(format!("the link of {what}"), was, &link(*fd));
            }
            let identity = |fd| borrowed(fd).metadata().map(|found| (found.dev(), found.ino())).ok();
            findings.that(identity(outer) == identity(again), "the same directory is two now");
            findings.that(identity(outer) != identity(inner), "two directories are the same now");
            findings.same("an attribute", &Ok(b"value".to_vec()), &attribute(outer));
            for wanderer in &mut wanderers {
                let told = findings.take("ask who is in a deleted directory", wanderer.ask(0));
                findings.same("what is wrong there", &Some(0), &told);
            }
        }
    })
}

/// A directory, open and listed to its end.
fn made(stage: &Stage, name: &str) -> RawFd {
    let path = stage.path(name);
    fs::create_dir(&path).expect("a folder");
    open(&path, libc::O_RDONLY | libc::O_DIRECTORY)
}

fn link(fd: RawFd) -> PathBuf {
    fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default()
}

fn attributes(fd: RawFd) {
    let folder = borrowed(fd);
    std::os::unix::fs::fchown(&*folder, Some(1234), Some(5678)).expect("chown");
    folder
        .set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o1751))
        .expect("chmod");
    // SAFETY: the name ends with a NUL, the value has the stated length.
    let status = unsafe { libc::fsetxattr(fd, c"trusted.mine".as_ptr(), b"value".as_ptr().cast(), 5, 0) };
    assert_eq!(status, 0, "an attribute: {}", io::Error::last_os_error());
    let times = fs::FileTimes::new().set_modified(UNIX_EPOCH + std::time::Duration::from_nanos(1_234_567_890_123));
    folder.set_times(times).expect("set times");
}

fn attribute(fd: RawFd) -> Result<Vec<u8>, i32> {
    let mut value = vec![0; 100];
    // SAFETY: the name ends with a NUL, there is room for the stated length.
    let got = unsafe { libc::fgetxattr(fd, c"trusted.mine".as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let got = call::checked(got as i64).map_err(|error| error.raw_os_error().unwrap_or(0))?;
    value.truncate(got as usize);
    Ok(value)
}

/// Whether nothing can be made in a directory, because it is none any more.
fn makes_nothing(fd: RawFd) -> bool {
    let path = PathBuf::from(format!("/proc/self/fd/{fd}/new"));
    let error = try_open(&path, libc::O_CREAT | libc::O_RDWR).err();
    error.and_then(|error| error.raw_os_error()) == Some(libc::ENOENT)
}

/// A child whose working directory it is.
fn in_folder(folder: &Path) -> Peer {
    let before = env::current_dir().expect("a working directory");
    env::set_current_dir(folder).expect("enter it");
    let peer = Peer::start(|_| {
        let gone = env::current_dir().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let link = fs::read_link("/proc/self/cwd").unwrap_or_default();
        let text = link.display().to_string();
        let is_it = text.contains("/home") && text.ends_with(" (deleted)");
        let makes = fs::write("new", "").is_ok();
        i64::from(!gone) | i64::from(!is_it) << 1 | i64::from(makes) << 2
    });
    env::set_current_dir(before).expect("go back");
    peer
}

/// A child whose root directory it is. It opened what it asks before.
fn in_root(folder: &Path) -> Peer {
    let (folder, outside) = (folder.to_owned(), open(Path::new("/"), libc::O_RDONLY));
    let mut entered = false;
    let peer = Peer::start(move |question| {
        if !entered {
            nix::unistd::chroot(&folder).expect("chroot");
            env::set_current_dir("/").expect("enter the root");
            entered = true;
            if question == 1 {
                return 0;
            }
        }
        let makes = fs::write("/new", "").is_ok();
        let lists = fs::read_dir("/").is_ok_and(|mut all| all.next().is_some_and(|entry| entry.is_ok()));
        // Where it is, by a descriptor of the root outside.
        let link = format!("/proc/{}/root\0", std::process::id());
        let mut text = vec![0u8; 4096];
        // SAFETY: the path ends with a NUL, there is room for the stated length.
        let got = unsafe { libc::readlinkat(outside, link[1..].as_ptr().cast(), text.as_mut_ptr().cast(), text.len()) };
        text.truncate(got.max(0) as usize);
        let is_it = String::from_utf8_lossy(&text).ends_with("(deleted)");
        i64::from(makes) | i64::from(lists) << 1 | i64::from(!is_it) << 2
    });
    assert_eq!(peer.ask(1).expect("it enters"), 0);
    peer
}
