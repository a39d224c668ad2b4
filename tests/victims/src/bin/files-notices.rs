//! Directories that tell of what happens in them (F_NOTIFY): of each of its kinds, once and again, to the process that asked;
//! one that two processes asked through the same open file.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{fd::RawFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
};
use victims::{Findings, Peer, Stage, call, descriptor::open, play};

const F_SETSIG: i32 = 10;
const F_NOTIFY: i32 = 1026;
const ACCESS: i32 = 1;
const MODIFY: i32 = 2;
const CREATE: i32 = 4;
const DELETE: i32 = 8;
const RENAME: i32 = 16;
const ATTRIB: i32 = 32;
const AGAIN: i32 = 1 << 31;

fn main() {
    let told = libc::SIGRTMIN() + 5;
    block(told);
    play(|stage| {
        let all = Watched::new(
            stage,
            "all",
            told,
            ACCESS | MODIFY | CREATE | DELETE | RENAME | ATTRIB | AGAIN,
        );
        let some = Watched::new(stage, "some", told, ATTRIB | RENAME | AGAIN);
        let once = Watched::new(stage, "once", told, DELETE);
        let shared = Watched::new(stage, "shared", told, CREATE | AGAIN);
        // The file's owner stays who asked first, and is told the number of who asked.
        let number = shared.file;
        let child = Peer::start(move |_| {
            // SAFETY: a number.
            let other = call::checked(i64::from(unsafe { libc::dup(number) })).expect("dup") as i32;
            call::fcntl(other, F_NOTIFY, DELETE | AGAIN).expect("F_NOTIFY");
            i64::from(other)
        });
        let other = child.ask(0).expect("its number") as i32;
        move |findings: &mut Findings| {
            let _child = &child;
            if findings.sabotage() {
                call::fcntl(all.file, F_NOTIFY, 0).expect("F_NOTIFY");
            }
            findings.same("what is told before anything happens", &Vec::new(), &signals(told));
            all.check(findings, told, [true; 6], all.file);
            some.check(findings, told, [false, false, false, true, true, false], some.file);
            once.check(findings, told, [false, false, false, false, true, false], once.file);
            once.check(findings, told, [false; 6], once.file);
            call::fcntl(once.file, F_NOTIFY, DELETE).expect("F_NOTIFY");
            fs::write(shared.path.join("new"), "").expect("write");
            findings.same("what is told of a new file", &vec![shared.file], &signals(told));
            fs::remove_file(shared.path.join("new")).expect("remove");
            findings.same("what is told of a deleted file", &vec![other], &signals(told));
        }
    })
}

fn block(signal: i32) {
    let set = set_of(signal);
    // SAFETY: the set is read.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

fn set_of(signal: i32) -> libc::sigset_t {
    // SAFETY: a set of zeros is one; the number is a signal.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, signal);
        set
    }
}

/// The files that the waiting signals are about.
fn signals(signal: i32) -> Vec<RawFd> {
    let set = set_of(signal);
    let time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut files = Vec::new();
    loop {
        // SAFETY: all structures outlive the call.
        unsafe {
            let mut about: libc::siginfo_t = std::mem::zeroed();
            if libc::sigtimedwait(&raw const set, &raw mut about, &raw const time) != signal {
                return files;
            }
            // si_fd.
            files.push((&raw const about).cast::<i64>().add(3).read() as i32);
        }
    }
}

struct Watched {
    path: PathBuf,
    file: RawFd,
}

impl Watched {
    fn new(stage: &Stage, name: &str, signal: i32, events: i32) -> Self {
        let path = stage.path(name);
        fs::create_dir(&path).expect("a folder");
        let file = open(&path, libc::O_RDONLY | libc::O_DIRECTORY);
        call::fcntl(file, F_SETSIG, signal).expect("F_SETSIG");
        call::fcntl(file, F_NOTIFY, events).expect("F_NOTIFY");
        Self { path, file }
    }

    /// Each thing that can happen: whether it is told of.
    fn check(&self, findings: &mut Findings, signal: i32, wanted: [bool; 6], number: RawFd) {
        for (wanted, (what, happen)) in wanted.into_iter().zip(HAPPENS) {
            happen(&self.path);
            let told = signals(signal);
            let wanted = if wanted { vec![number] } else { Vec::new() };
            let name = self.path.file_name().unwrap_or_default().display();
            findings.same(
                format!("what {name} tells of: {what}"),
                &wanted,
                &told[..told.len().min(1)].to_vec(),
            );
        }
    }
}

type Happen = (&'static str, fn(&Path));

const HAPPENS: [Happen; 6] = [
    ("a new file", |path| {
        drop(File::create_new(path.join("file")).expect("create"));
    }),
    ("a change", |path| {
        let mut file = File::options().append(true).open(path.join("file")).expect("open");
        file.write_all(b"text").expect("write");
    }),
    ("a look", |path| {
        let mut file = File::open(path.join("file")).expect("open");
        file.read_exact(&mut [0; 4]).expect("read");
    }),
    ("other attributes", |path| {
        fs::set_permissions(path.join("file"), fs::Permissions::from_mode(0o600)).expect("chmod");
    }),
    ("another name", |path| {
        fs::rename(path.join("file"), path.join("moved")).expect("rename");
    }),
    ("a deletion", |path| {
        fs::remove_file(path.join("moved")).expect("remove");
    }),
];
