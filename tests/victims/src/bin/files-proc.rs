//! Files and directories of /proc: of the victim, a thread, a child, a zombie, of a process and a thread that have ended, and
//! of the system; with positions, shared with another process. Beside them files of sysfs.

use std::{
    fs, io,
    os::{
        fd::RawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    process,
};
use victims::{
    Findings, Peer, call,
    descriptor::{borrowed, entries, open, seek},
    own, play,
    stage::fork,
    wait_until,
    waiting::spawn_into,
};

fn main() {
    play(|_stage| {
        let tid = thread();
        let child = Peer::start(|_| 0);
        let zombie = fork(|| process::exit(7));
        assert!(wait_until(|| own::state_of(&zombie.to_string()) == 'Z'), "no zombie");
        let own = process::id();
        let mut files: Vec<Open> = [
            format!("/proc/{own}/limits"),
            format!("/proc/{own}/task/{tid}/comm"),
            format!("/proc/{tid}/comm"),
            format!("/proc/{}/cmdline", child.pid),
            format!("/proc/{zombie}/comm"),
            "/proc/self/mountinfo".to_owned(),
            "/proc/self/net/protocols".to_owned(),
            "/proc/version".to_owned(),
            "/proc/sys/kernel/ostype".to_owned(),
            "/sys/kernel/mm/transparent_hugepage/enabled".to_owned(),
        ]
        .into_iter()
        .map(Open::file)
        .collect();
        let folders = [
            "/proc/self/task",
            "/proc/self",
            "/proc/self/fd",
            "/proc/sys/kernel",
            "/proc",
            "/sys/kernel",
        ];
        files.extend(folders.map(|path| Open::folder(path.to_owned())));
        let path_only = open(Path::new("/proc/self"), libc::O_PATH | libc::O_DIRECTORY);
        let memory = Memory::open();
        let ended = Ended::make();
        let peer = Peer::start(|fd| seek(fd as RawFd, 0, libc::SEEK_CUR).unwrap_or(-1));
        move |findings: &mut Findings| {
            let _ = &child;
            for file in &mut files {
                if findings.sabotage() {
                    seek(file.fd, 0, libc::SEEK_SET).expect("seek");
                }
                let told = findings.take("ask the other process", peer.ask(file.fd.into()));
                findings.same(
                    format!("position of {} in the other process", file.path),
                    &Some(file.position),
                    &told,
                );
                file.check(findings);
            }
            memory.check(findings);
            ended.check(findings);
            let inside = fs::read_to_string(format!("/proc/self/fd/{path_only}/comm"));
            findings.that(
                inside.is_ok_and(|inside| inside == "files-proc\n"),
                "O_PATH of /proc/self",
            );
        }
    })
}

/// A thread with a name of its own, which waits for ever.
fn thread() -> i32 {
    let (tell, hear) = std::sync::mpsc::channel();
    spawn_into(&[libc::SYS_pause], move || {
        tell.send(call::gettid()).expect("it is heard");
        fs::write("/proc/thread-self/comm", "a thread").expect("a name");
        // SAFETY: waits.
        unsafe { libc::pause() };
    });
    hear.recv().expect("an id")
}

/// A file that was read in part.
struct Open {
    path: String,
    fd: RawFd,
    folder: bool,
    position: i64,
}

impl Open {
    fn file(path: String) -> Self {
        let fd = open(Path::new(&path), libc::O_RDONLY);
        call::read(fd, 3).expect("read a part");
        Self::read(path, fd, false)
    }

    fn folder(path: String) -> Self {
        let fd = open(Path::new(&path), libc::O_RDONLY | libc::O_DIRECTORY);
        entries(fd, 60).expect("list a part");
        Self::read(path, fd, true)
    }

    fn read(path: String, fd: RawFd, folder: bool) -> Self {
        let position = seek(fd, 0, libc::SEEK_CUR).expect("a position");
        assert!(position > 0, "{path} is at its beginning");
        Self {
            path,
            fd,
            folder,
            position,
        }
    }

    /// What a descriptor that was just opened goes on with at the same place, and this one too.
    fn check(&self, findings: &mut Findings) {
        let fresh = open(Path::new(&self.path), libc::O_RDONLY);
        seek(fresh, self.position, libc::SEEK_SET).expect("seek");
        let (wanted, got) = (self.rest(fresh), self.rest(self.fd));
        call::close(fresh);
        findings.that(
            wanted.as_ref().is_ok_and(|text| !text.is_empty()),
            format!("{}: {wanted:?}", self.path),
        );
        let got = got.map_err(|error| error.to_string());
        findings.that(
            wanted.as_ref().ok() == got.as_ref().ok(),
            format!("{} goes on with {got:?}, not with {wanted:?}", self.path),
        );
        let identity = |found: io::Result<fs::Metadata>| found.map(|found| (found.dev(), found.ino())).ok();
        let (own, there) = (
            identity(borrowed(self.fd).metadata()),
            identity(fs::metadata(&self.path)),
        );
        findings.same(format!("inode of {}", self.path), &there, &own);
        seek(self.fd, self.position, libc::SEEK_SET).expect("seek back");
    }

    fn rest(&self, fd: RawFd) -> io::Result<String> {
        if self.folder {
            let names = entries(fd, 300)?;
            return Ok(names
                .into_iter()
                .filter(|name| !name.is_empty())
                .collect::<Vec<_>>()
                .join(" "));
        }
        Ok(String::from_utf8_lossy(&call::read(fd, 40)?).into_owned())
    }
}

/// The victim's own memory, by /proc/self/mem at a position.
struct Memory {
    fd: RawFd,
    content: Box<[u8; 16]>,
}

impl Memory {
    fn open() -> Self {
        let content = Box::new(*b"behind /proc/mem");
        let fd = open(Path::new("/proc/self/mem"), libc::O_RDWR);
        seek(fd, content.as_ptr() as i64, libc::SEEK_SET).expect("seek");
        Self { fd, content }
    }

    fn check(&self, findings: &mut Findings) {
        let place = self.content.as_ptr() as u64;
        findings.same(
            "position in memory",
            &(place as i64),
            &seek(self.fd, 0, libc::SEEK_CUR).unwrap_or(-1),
        );
        let mut read = [0; 16];
        let got = borrowed(self.fd).read_exact_at(&mut read, place);
        findings.that(got.is_ok() && read == *self.content, format!("memory is {read:?}"));
        findings.that(
            borrowed(self.fd).write_all_at(&read, place).is_ok(),
            "memory can't be written",
        );
    }
}

/// Of a process and a thread that have ended.
struct Ended {
    files: Vec<(RawFd, String)>,
    folder: RawFd,
}

impl Ended {
    fn make() -> Self {
        let child = Peer::start(|_| process::exit(0));
        let (tell, hear) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(call::gettid()).expect("it is heard");
            let _ = wait.recv();
        });
        let tid = hear.recv().expect("an id");
        let paths = [
            format!("/proc/{}/status", child.pid),
            format!("/proc/{}/limits", child.pid),
            format!("/proc/self/task/{tid}/comm"),
        ];
        let files = paths
            .iter()
            .map(|path| open(Path::new(path), libc::O_RDONLY))
            .collect::<Vec<_>>();
        let folder = open(
            Path::new(&format!("/proc/{}", child.pid)),
            libc::O_RDONLY | libc::O_DIRECTORY,
        );
        call::read(files[0], 10).expect("read a part");
        let _ = child.ask(0);
        call::wait(child.pid, 0).expect("it ends");
        drop(go);
        thread.join().expect("it ends");
        assert!(wait_until(|| !Path::new(&paths[2]).exists()), "the thread does not end");
        let files = files.into_iter().map(|fd| (fd, link(fd))).collect();
        Self { files, folder }
    }

    fn check(&self, findings: &mut Findings) {
        for (fd, was) in &self.files {
            let read = borrowed(*fd)
                .read_at(&mut [0; 10], 0)
                .map_err(|error| error.raw_os_error());
            findings.same(format!("what reading {was} gives"), &Err(Some(libc::ESRCH)), &read);
        }
        let first = &self.files[0];
        findings.same("link of the first", &first.1, &link(first.0));
        let listed = entries(self.folder, 100).map_err(|error| error.raw_os_error());
        findings.same("what listing gives", &Err(Some(libc::ENOENT)), &listed);
    }
}

fn link(fd: RawFd) -> String {
    let link = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
    link.display().to_string()
}
