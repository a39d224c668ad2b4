//! Files that stand for something else: paths, views of /proc and of cgroups, namespaces, queues, terminals.

use super::kinds::Made;
use std::{
    ffi::CString,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            fs::{FileExt, MetadataExt, symlink},
            net::UnixDatagram,
        },
    },
    path::Path,
};
use victims::{
    Findings, Stage, call,
    descriptor::open,
    letter,
    pty::{self, Pty},
    wait_until,
};

/// One of each.
pub fn each(stage: &Stage) -> Vec<Made> {
    vec![
        path_of_a_link(stage),
        path_of_a_folder(stage),
        queue(),
        process(),
        system(),
        namespace(),
        cgroup(),
        terminal_master(),
        terminal_slave(),
        terminal_of_nobody(),
    ]
}

fn owned(number: RawFd) -> OwnedFd {
    // SAFETY: the callers have just made it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

fn plain(file: &OwnedFd) -> File {
    File::from(file.try_clone().expect("dup"))
}

fn link(file: &OwnedFd) -> String {
    let link = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
    link.display().to_string()
}

fn path_of_a_link(stage: &Stage) -> Made {
    let path = stage.path("link in flight");
    symlink("nowhere", &path).expect("a link");
    let file = owned(open(&path, libc::O_PATH | libc::O_NOFOLLOW));
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        findings.same("its path", &path.display().to_string(), &link(file));
        findings.that(
            plain(file).metadata().is_ok_and(|found| found.is_symlink()),
            "it is no link",
        );
    };
    ("the path of a link", file, Box::new(check))
}

fn path_of_a_folder(stage: &Stage) -> Made {
    let path = stage.dir().display().to_string();
    let file = owned(open(stage.dir(), libc::O_PATH | libc::O_DIRECTORY));
    let check = move |findings: &mut Findings, file: &OwnedFd| findings.same("its path", &path, &link(file));
    ("the path of a folder", file, Box::new(check))
}

/// It has no name any more.
fn queue() -> Made {
    let name = CString::new(format!("/flight-{}", std::process::id())).expect("no NUL");
    // SAFETY: all zero is no flags and no sizes.
    let mut size: libc::mq_attr = unsafe { std::mem::zeroed() };
    (size.mq_maxmsg, size.mq_msgsize) = (4, 16);
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_NONBLOCK;
    // SAFETY: the name ends with a NUL; the sizes are read.
    let number = unsafe { libc::mq_open(name.as_ptr(), flags, 0o600, &raw const size) };
    let file = owned(call::checked(number.into()).expect("mq_open") as RawFd);
    // SAFETY: as above.
    call::checked(unsafe { libc::mq_unlink(name.as_ptr()) }.into()).expect("mq_unlink");
    let send = |file: &OwnedFd| {
        // SAFETY: the bytes have the stated length.
        let sent = unsafe { libc::mq_send(file.as_raw_fd(), c"sent".as_ptr(), 4, 7) };
        call::checked(sent.into()).expect("mq_send");
    };
    send(&file);
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let (mut text, mut priority) = ([0_u8; 16], 0);
        // SAFETY: room for a message and a number.
        let got = unsafe { libc::mq_receive(file.as_raw_fd(), text.as_mut_ptr().cast(), 16, &raw mut priority) };
        findings.same("the message", &(4, &b"sent"[..], 7), &(got, &text[..4], priority));
        send(file);
    };
    ("a message queue", file, Box::new(check))
}

fn process() -> Made {
    let own = std::process::id();
    let mut file = File::open("/proc/self/status").expect("open");
    file.seek(SeekFrom::Start(5)).expect("seek");
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let mut text = [0; 4096];
        let read = findings.take("read", plain(file).read_at(&mut text, 0));
        let text = String::from_utf8_lossy(&text[..read.unwrap_or(0)]).into_owned();
        findings.that(text.contains(&format!("\nPid:\t{own}\n")), text);
    };
    ("a file of a process", file.into(), Box::new(check))
}

fn system() -> Made {
    let file = File::open("/proc/version").expect("open");
    let known = fs::read_to_string("/proc/version").expect("read");
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let mut file = plain(file);
        let mut text = String::new();
        findings.take("read", file.read_to_string(&mut text));
        file.rewind().expect("seek");
        findings.same("what it says", &known, &text);
    };
    ("a file of the system", file.into(), Box::new(check))
}

fn namespace() -> Made {
    let file = File::open("/proc/self/ns/uts").expect("open");
    let check = |findings: &mut Findings, file: &OwnedFd| {
        let own = fs::metadata("/proc/self/ns/uts").expect("it is there").ino();
        findings.same(
            "the namespace",
            &Some(own),
            &plain(file).metadata().ok().map(|found| found.ino()),
        );
    };
    ("a namespace", file.into(), Box::new(check))
}

fn cgroup() -> Made {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let line = mounts.lines().find(|line| line.contains(" - cgroup"));
    let folder = line
        .and_then(|line| line.split(' ').nth(4))
        .expect("a cgroup file system");
    let file = File::open(Path::new(folder).join("cgroup.procs")).expect("open");
    let path = link(&file.try_clone().expect("dup").into());
    let check = move |findings: &mut Findings, file: &OwnedFd| findings.same("its path", &path, &link(file));
    ("a file of a cgroup", file.into(), Box::new(check))
}

/// Its slave is in a table.
fn terminal_master() -> Made {
    let Pty { master, slave, .. } = Pty::new();
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        call::write(slave, b"said").expect("write");
        let got = wait_until(|| call::read(file.as_raw_fd(), 100).is_ok_and(|bytes| bytes == b"said"));
        findings.that(got, "what the slave writes does not come");
    };
    ("a terminal's master", owned(master), Box::new(check))
}

/// Its master is in a table.
fn terminal_slave() -> Made {
    let Pty { master, slave, number } = Pty::new();
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        findings.same(
            "number",
            &Some(number as i32),
            &pty::ioctl(master, libc::TIOCGPTN, 0).ok(),
        );
        call::write(master, b"typed\n").expect("write");
        let got = wait_until(|| call::read(file.as_raw_fd(), 100).is_ok_and(|bytes| bytes == b"typed\n"));
        findings.that(got, "what is typed does not come");
        // What was echoed.
        let echoed = wait_until(|| call::read(master, 100).is_ok_and(|bytes| bytes == b"typed\r\n"));
        findings.that(echoed, "what is typed is not echoed");
    };
    ("a terminal's slave", owned(slave), Box::new(check))
}

/// The slave, of which the master is on its way, too.
fn terminal_of_nobody() -> Made {
    let Pty { master, slave, .. } = Pty::new();
    call::write(slave, b"early").expect("write");
    let (near, far) = UnixDatagram::pair().expect("a pair");
    let master = owned(master);
    letter::send(near.as_raw_fd(), b"master", &[master.as_fd()]).expect("send");
    drop(master);
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let got = letter::receive(far.as_raw_fd(), 10, 0).expect("receive");
        let Some(master) = got.and_then(|letter| letter.files.into_iter().next()) else {
            return findings.add("its master is gone");
        };
        let bytes = findings.take("read", call::read(master.as_raw_fd(), 100));
        findings.same("what was said early", &Some(b"early".to_vec()), &bytes);
        call::write(file.as_raw_fd(), b"early").expect("write");
        letter::send(near.as_raw_fd(), b"master", &[master.as_fd()]).expect("send");
    };
    ("a terminal of nobody", owned(slave), Box::new(check))
}
