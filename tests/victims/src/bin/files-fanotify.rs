//! fanotify groups: of files in a directory, with files that are left out; of all programs that a mount has; of a
//! filesystem; and one that watches nothing.

use std::{
    fs,
    os::fd::RawFd,
    path::{Path, PathBuf},
    process::Command,
};
use victims::{Findings, Seen, call, play};

const ON_CHILD: u64 = libc::FAN_EVENT_ON_CHILD;

fn main() {
    play(|stage| {
        let folder = stage.path("watched");
        fs::create_dir(&folder).expect("a folder");
        for name in ["told", "left out"] {
            fs::write(folder.join(name), "text").expect("write");
        }
        let files = Group::new(libc::FAN_CLASS_NOTIF | libc::FAN_NONBLOCK, libc::O_RDONLY);
        files.mark(0, libc::FAN_OPEN | libc::FAN_CLOSE_WRITE | ON_CHILD, &folder);
        let ignore = libc::FAN_MARK_IGNORED_MASK | libc::FAN_MARK_IGNORED_SURV_MODIFY;
        files.mark(ignore, libc::FAN_OPEN, &folder.join("left out"));
        let programs = Group::new(
            libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK,
            libc::O_RDWR,
        );
        programs.mark(libc::FAN_MARK_MOUNT, libc::FAN_OPEN_EXEC, Path::new("/"));
        let names = Group::new(libc::FAN_REPORT_DFID_NAME | libc::FAN_UNLIMITED_MARKS, 0);
        names.mark(libc::FAN_MARK_FILESYSTEM, libc::FAN_OPEN_EXEC, Path::new("/dev/shm"));
        names.mark(libc::FAN_MARK_EVICTABLE, libc::FAN_DELETE | libc::FAN_ONDIR, &folder);
        let none = Group::new(libc::FAN_REPORT_TID, libc::O_RDONLY | libc::O_LARGEFILE);
        let before: Vec<_> = [&files, &programs, &names, &none].map(Group::look).into();
        move |findings: &mut Findings| {
            if findings.sabotage() {
                files.mark(libc::FAN_MARK_FLUSH, 0, &folder);
            }
            let now: Vec<_> = [&files, &programs, &names, &none].map(Group::look).into();
            findings.same("groups", &before, &now);
            findings.same("events before", &Vec::new(), &files.events());
            let own = std::process::id() as i32;
            fs::read(folder.join("told")).expect("read");
            fs::read(folder.join("left out")).expect("read");
            fs::write(folder.join("told"), "text").expect("write");
            let wanted = [libc::FAN_OPEN, libc::FAN_OPEN | libc::FAN_CLOSE_WRITE];
            let wanted = wanted.map(|mask| (mask, own, folder.join("told")));
            let told = files.events();
            let all = told.iter().fold(0, |all, event| all | event.0);
            findings.same("what is told of files", &wanted[1].0, &all);
            let strangers = told.iter().filter(|event| (event.1, &event.2) != (own, &wanted[0].2));
            findings.same("events of others", &0, &strangers.count());
            let status = Command::new("/bin/true").status().expect("a program");
            findings.that(status.success(), "the program fails");
            let program = fs::canonicalize("/bin/true").expect("it is there");
            let told = programs.events();
            let seen = told
                .iter()
                .any(|(mask, _, path)| (*mask, path) == (libc::FAN_OPEN_EXEC, &program));
            findings.that(seen, format!("the program is not told of: {told:?}"));
        }
    })
}

struct Group(RawFd);

impl Group {
    fn new(flags: u32, event_flags: i32) -> Self {
        // SAFETY: numbers.
        let made = unsafe { libc::fanotify_init(flags, event_flags as u32) };
        Self(call::checked(made.into()).expect("fanotify_init") as RawFd)
    }

    fn mark(&self, how: u32, mask: u64, path: &Path) {
        let how = if how & libc::FAN_MARK_FLUSH == 0 {
            how | libc::FAN_MARK_ADD
        } else {
            how
        };
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("no NUL");
        // SAFETY: the path ends with a NUL.
        let marked = unsafe { libc::fanotify_mark(self.0, how, mask, libc::AT_FDCWD, name.as_ptr()) };
        call::checked(marked.into()).unwrap_or_else(|error| panic!("mark {}: {error}", path.display()));
    }

    /// Flags, and what the kernel tells of it: mounts have other numbers elsewhere.
    fn look(&self) -> (i32, bool, Vec<String>) {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0)).expect("fdinfo");
        let lines = text.lines().filter(|line| line.starts_with("fanotify "));
        let lines = lines.map(|line| {
            let words = line.split(' ').filter(|word| !word.starts_with("mnt_id:"));
            words.collect::<Vec<_>>().join(" ")
        });
        let seen = Seen::of(self.0);
        (seen.flags, seen.close_on_exec, lines.collect())
    }

    /// What waits: mask, process, path.
    fn events(&self) -> Vec<(u64, i32, PathBuf)> {
        let mut all = Vec::new();
        while let Ok(bytes) = call::read(self.0, 4096) {
            // struct fanotify_event_metadata: length (4), version, reserved, length of the metadata (2), mask (8), file,
            // process.
            for event in bytes.chunks_exact(24) {
                let word = |at: usize| i32::from_ne_bytes(event[at..at + 4].try_into().expect("4 bytes"));
                let mask = u64::from_ne_bytes(event[8..16].try_into().expect("8 bytes"));
                let file = word(16);
                let path = fs::read_link(format!("/proc/self/fd/{file}")).unwrap_or_default();
                call::close(file);
                all.push((mask, word(20), path));
            }
        }
        all
    }
}
