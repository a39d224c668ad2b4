//! inotify instances with events that nobody has read: of files and directories that are watched, of watches that were
//! removed, used up or whose files were deleted; the same file watched by two; one that epoll watches and a child has too.

use std::{
    fs,
    os::fd::RawFd,
    path::{Path, PathBuf},
};
use victims::{
    Findings, Stage, call,
    notice::{Event, events, instance, unwatch, watch},
    play,
};

const DIRECTORY: u32 = libc::IN_ISDIR;

/// An instance, what waits in it, and what makes as much wait again.
struct Unread {
    what: &'static str,
    instance: RawFd,
    wanted: Vec<Event>,
    happen: Box<dyn FnMut(RawFd) -> Vec<Event>>,
}

impl Unread {
    fn new(what: &'static str, mut happen: impl FnMut(RawFd) -> Vec<Event> + 'static) -> Self {
        let instance = instance(libc::IN_NONBLOCK);
        Self {
            what,
            instance,
            wanted: happen(instance),
            happen: Box::new(happen),
        }
    }

    fn check(&mut self, findings: &mut Findings) {
        let got = events(self.instance);
        findings.same(self.what, &self.wanted, &got);
        let nothing = call::read(self.instance, 4096).map_err(|error| error.kind());
        findings.same("no more", &Err(std::io::ErrorKind::WouldBlock), &nothing);
        self.wanted = (self.happen)(self.instance);
    }
}

fn main() {
    play(|stage| {
        let mut all = vec![
            watched(stage),
            in_a_directory(stage),
            removed(stage),
            deleted(stage),
            used_up(stage),
        ];
        all.extend(both(stage));
        let ready = watched_by_epoll(all[0].instance);
        let first = all[0].instance;
        stage.child("with an instance", move |_| {
            move |findings: &mut Findings| {
                // Its parent reads at its own time.
                let text = fs::read_to_string(format!("/proc/self/fdinfo/{first}")).unwrap_or_default();
                findings.that(text.contains("inotify wd:"), format!("the child's instance: {text}"));
            }
        });
        move |findings: &mut Findings| {
            findings.same("instances that are ready", &1, &ready());
            if findings.sabotage() {
                let _lost = events(first);
                (all[0].happen)(first);
                (all[0].happen)(first);
            }
            all.iter_mut().for_each(|one| one.check(findings));
        }
    })
}

fn folder(stage: &Stage, name: &str) -> PathBuf {
    let path = stage.path(name);
    fs::create_dir(&path).expect("a folder");
    path
}

fn named(number: i32, mask: u32, name: &str) -> Event {
    (number, mask, name.to_owned())
}

fn own(number: i32, mask: u32) -> Event {
    named(number, mask, "")
}

fn append(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::options().append(true).open(path).expect("open");
    file.write_all(b"line\n").expect("write");
}

/// A file as `tail -f` watches it, and one of which everything is told.
fn watched(stage: &Stage) -> Unread {
    let (log, other) = (stage.path("log"), stage.path("other file"));
    fs::write(&log, "first\n").expect("write");
    fs::write(&other, "some").expect("write");
    Unread::new("events of files", move |instance| {
        let first = watch(instance, &log, libc::IN_MODIFY);
        let second = watch(instance, &other, libc::IN_ALL_EVENTS);
        append(&log);
        let _some = fs::read(&other).expect("read");
        append(&log);
        append(&log);
        append(&other);
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).expect("chmod");
        vec![
            own(first, libc::IN_MODIFY),
            own(second, libc::IN_OPEN),
            own(second, libc::IN_ACCESS),
            own(second, libc::IN_CLOSE_NOWRITE),
            own(first, libc::IN_MODIFY),
            own(second, libc::IN_OPEN),
            own(second, libc::IN_MODIFY),
            own(second, libc::IN_CLOSE_WRITE),
            own(second, libc::IN_ATTRIB),
        ]
    })
}

/// With names of files and folders in it, and of the directory itself.
fn in_a_directory(stage: &Stage) -> Unread {
    let path = folder(stage, "directory");
    let file = path.join("a file with a name of some length, and blanks");
    let below = path.join("below");
    fs::write(&file, "some").expect("write");
    fs::create_dir(&below).expect("a folder");
    Unread::new("events of a directory", move |instance| {
        let mask = libc::IN_OPEN | libc::IN_MODIFY | libc::IN_CLOSE;
        let number = watch(instance, &path, mask);
        append(&file);
        drop(fs::File::open(&below).expect("open"));
        drop(fs::File::open(&path).expect("open"));
        let name = file.file_name().and_then(|name| name.to_str()).expect("text");
        vec![
            named(number, libc::IN_OPEN, name),
            named(number, libc::IN_MODIFY, name),
            named(number, libc::IN_CLOSE_WRITE, name),
            named(number, libc::IN_OPEN | DIRECTORY, "below"),
            named(number, libc::IN_CLOSE_NOWRITE | DIRECTORY, "below"),
            own(number, libc::IN_OPEN | DIRECTORY),
            own(number, libc::IN_CLOSE_NOWRITE | DIRECTORY),
        ]
    })
}

/// The watch is none any more, so its directory need not be as it was; other watches have numbers around its own.
fn removed(stage: &Stage) -> Unread {
    let (path, still) = (folder(stage, "removed"), folder(stage, "still"));
    Unread::new("events of a removed watch", move |instance| {
        let mask = libc::IN_CREATE | libc::IN_DELETE | libc::IN_CLOSE_WRITE | libc::IN_ATTRIB;
        let lives = watch(instance, &still, libc::IN_OPEN);
        let number = watch(instance, &path, mask);
        fs::write(path.join("one"), "x").expect("write");
        fs::create_dir(path.join("below")).expect("a folder");
        drop(fs::File::open(&still).expect("open"));
        fs::remove_file(path.join("one")).expect("remove");
        fs::remove_dir(path.join("below")).expect("remove");
        unwatch(instance, number);
        vec![
            named(number, libc::IN_CREATE, "one"),
            named(number, libc::IN_CLOSE_WRITE, "one"),
            named(number, libc::IN_CREATE | DIRECTORY, "below"),
            own(lives, libc::IN_OPEN | DIRECTORY),
            named(number, libc::IN_DELETE, "one"),
            named(number, libc::IN_DELETE | DIRECTORY, "below"),
            own(number, libc::IN_IGNORED),
        ]
    })
}

/// What was watched is deleted: a directory with what was in it, and a file.
fn deleted(stage: &Stage) -> Unread {
    let (path, file) = (stage.path("deleted"), stage.path("deleted file"));
    Unread::new("events of what was deleted", move |instance| {
        fs::create_dir(&path).expect("a folder");
        fs::write(path.join("leaf"), "x").expect("write");
        fs::write(&file, "x").expect("write");
        let directory = watch(instance, &path, libc::IN_DELETE | libc::IN_DELETE_SELF);
        let number = watch(instance, &file, libc::IN_ATTRIB | libc::IN_DELETE_SELF);
        fs::remove_file(path.join("leaf")).expect("remove");
        fs::remove_dir(&path).expect("remove");
        fs::remove_file(&file).expect("remove");
        vec![
            named(directory, libc::IN_DELETE, "leaf"),
            own(directory, libc::IN_DELETE_SELF),
            own(directory, libc::IN_IGNORED),
            own(number, libc::IN_ATTRIB),
            own(number, libc::IN_DELETE_SELF),
            own(number, libc::IN_IGNORED),
        ]
    })
}

/// A watch that tells once; the next one has the next number.
fn used_up(stage: &Stage) -> Unread {
    let path = stage.path("once");
    fs::write(&path, "x").expect("write");
    let mut last = 0;
    Unread::new("events of a watch that told once", move |instance| {
        let number = watch(instance, &path, libc::IN_OPEN | libc::IN_ONESHOT);
        assert!(last == 0 || number == last + 1, "numbers go on: {last}, {number}");
        last = number;
        drop(fs::File::open(&path).expect("open"));
        vec![own(number, libc::IN_OPEN), own(number, libc::IN_IGNORED)]
    })
}

/// Two instances that watch one file, for different things.
fn both(stage: &Stage) -> [Unread; 2] {
    let path = stage.path("watched twice");
    fs::write(&path, "x").expect("write");
    let masks = [libc::IN_MODIFY, libc::IN_OPEN | libc::IN_CLOSE_WRITE];
    let instances = masks.map(|_| instance(libc::IN_NONBLOCK));
    let numbers = [0, 1].map(|index| watch(instances[index], &path, masks[index]));
    append(&path);
    let wanted = [
        vec![own(numbers[0], libc::IN_MODIFY)],
        vec![own(numbers[1], libc::IN_OPEN), own(numbers[1], libc::IN_CLOSE_WRITE)],
    ];
    let [first, second] = wanted.clone();
    // The second is read last, and one write is told to both.
    let next = wanted[0].clone();
    let [one, other] = instances;
    let happen = Box::new(move |_| next.clone());
    let again = wanted[1].clone();
    [
        Unread {
            what: "events of the first of two",
            instance: one,
            wanted: first,
            happen,
        },
        Unread {
            what: "events of the second of two",
            instance: other,
            wanted: second,
            happen: Box::new(move |_| {
                append(&path);
                again.clone()
            }),
        },
    ]
}

fn watched_by_epoll(instance: RawFd) -> impl Fn() -> i32 {
    // SAFETY: a number.
    let epoll = unsafe { libc::epoll_create1(0) };
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 9,
    };
    // SAFETY: the structure outlives the call.
    unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, instance, &raw mut event) };
    move || {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event.
        unsafe { libc::epoll_wait(epoll, &raw mut event, 1, 0) }
    }
}
