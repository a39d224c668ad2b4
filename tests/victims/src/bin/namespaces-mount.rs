//! Processes in several mount namespaces: one that has what nobody else sees, and files of others; a child of it; those that
//! get what is mounted in the victim's own, in both directions and in one; PID namespaces below each other, each with its
//! own /proc.

use nix::{
    mount::MsFlags,
    sched::{CloneFlags, unshare},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        stat::Mode,
    },
};
use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::RawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
};
use victims::{
    Findings, Seen, Stage,
    descriptor::open,
    memory::{Mapping, PAGE},
    mounts::{below, bind, change, filesystem, unmount},
    own, play,
    stage::{first, wait_until},
};

const DEPTH: usize = 3;
const ALL_PRIVATE: MsFlags = MsFlags::MS_REC.union(MsFlags::MS_PRIVATE);

fn main() {
    play(|stage| {
        let place = stage.path("place");
        fs::create_dir_all(&place).expect("a folder");
        fs::write(place.join("outer"), b"of all").expect("write");
        let common = filesystem("tmpfs", stage.path("common"), MsFlags::empty(), "size=1m");
        fs::write(common.join("file"), b"common").expect("write");
        change(&common, MsFlags::MS_SHARED);
        let alone = stage.child("alone", alone);
        let peer = stage.child("peer", |stage| member(stage, MsFlags::MS_SHARED));
        let slave = stage.child("slave", |stage| member(stage, MsFlags::MS_SLAVE));
        nested(stage, DEPTH);
        let spaces = [alone, peer, slave].map(namespace);
        let inner = open(&inside(alone, &place.join("inner")), libc::O_RDWR);
        let (seen, link) = (Seen::of(inner), link(inner));
        let mut same = unchanged(stage.dir());
        let folder = stage.dir().to_owned();
        let mut round = 0;
        move |findings: &mut Findings| {
            same(findings);
            round += 1;
            let now = [alone, peer, slave].map(namespace);
            let mut all = now.to_vec();
            all.push(namespace(std::process::id() as i32));
            all.sort();
            all.dedup();
            findings.same("namespaces", &(spaces.len() + 1), &all.len());
            seen.compare(findings, "a file of another namespace", inner);
            findings.same("its link", &link, &self::link(inner));
            let there = fs::read(inside(alone, &place.join("inner"))).unwrap_or_default();
            findings.same("a file seen from outside", &b"of one".to_vec(), &there);
            findings.that(!place.join("inner").exists(), "it is in this namespace");
            // One filesystem, whoever sees it.
            let text = format!("round {round}").into_bytes();
            findings.take("write", fs::write(inside(alone, &common.join("written")), &text));
            let read = fs::read(common.join("written")).unwrap_or_default();
            findings.same("what was written elsewhere", &text, &read);
            let point = common.join("point");
            let count = |pid: i32| {
                let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
                text.lines().filter(|line| line.contains("/common/point ")).count()
            };
            let counts = || {
                [
                    count(std::process::id() as i32),
                    count(alone),
                    count(peer),
                    count(slave),
                ]
            };
            // What comes and goes now others must not see while they look.
            let done = |part: &str| folder.join(format!("part-{part}.{round}")).exists();
            findings.that(
                wait_until(|| ["peer", "slave"].into_iter().all(done)),
                "others do not look",
            );
            filesystem("tmpfs", point.clone(), MsFlags::empty(), "size=1m");
            findings.same("mounts after one here", &[1, 0, 1, 1], &counts());
            unmount(&point);
            findings.same("mounts without it", &[0; 4], &counts());
        }
    })
}

/// A path as another process sees it.
fn inside(pid: i32, path: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root{}", path.display()))
}

fn namespace(pid: i32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).expect("a namespace")
}

fn link(file: RawFd) -> PathBuf {
    fs::read_link(format!("/proc/self/fd/{file}")).unwrap_or_default()
}

/// What is mounted, and the directories that the process is in.
fn unchanged(top: &Path) -> impl FnMut(&mut Findings) + use<> {
    let tops = [top.to_owned(), "/proc".into()];
    let look = move || {
        let directories = ["cwd", "root"].map(|name| fs::read_link(format!("/proc/self/{name}")).ok());
        let mounts = tops.clone().map(|top| {
            let mut mounts = below(&top);
            // Of those at one place the kernel says no order.
            mounts.sort();
            mounts
        });
        (mounts, directories)
    };
    let before = look();
    move |findings| findings.same("mounts, directories", &before, &look())
}

/// A namespace of its own, in which nothing comes from others.
fn alone(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let (place, common) = (stage.path("place"), stage.path("common"));
    let outer = open(&place.join("outer"), libc::O_RDONLY);
    let removed = open(&place.join("removed"), libc::O_RDWR | libc::O_CREAT);
    fs::remove_file(place.join("removed")).expect("remove");
    unshare(CloneFlags::CLONE_NEWNS).expect("unshare");
    change(Path::new("/"), ALL_PRIVATE);
    filesystem("tmpfs", place.clone(), MsFlags::MS_NOSUID, "size=4m");
    fs::write(place.join("inner"), b"of one").expect("write");
    fs::create_dir(place.join("part")).expect("a folder");
    let shown = stage.path("shown");
    fs::create_dir_all(&shown).expect("a folder");
    bind(&place.join("part"), &shown, MsFlags::empty());
    let mapped = open(&place.join("mapped"), libc::O_RDWR | libc::O_CREAT);
    file_of(mapped).set_len(PAGE as u64).expect("set the length");
    let memory = Mapping::new(PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, mapped, 0);
    memory.mark(0, 7);
    let gone = open(&place.join("gone"), libc::O_RDWR | libc::O_CREAT);
    file_of(gone).write_all(b"deleted").expect("write");
    fs::remove_file(place.join("gone")).expect("remove");
    let listener = UnixListener::bind(place.join("part/socket")).expect("bind");
    nix::unistd::mkfifo(&place.join("fifo"), Mode::S_IRWXU).expect("a fifo");
    let mut fifo = file_of(open(&place.join("fifo"), libc::O_RDWR | libc::O_NONBLOCK));
    fifo.write_all(b"waits").expect("write");
    let watch = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
    let program = place.join("program");
    fs::copy("/bin/sleep", &program).expect("copy");
    let ran = Command::new(&program).arg("1000").spawn().expect("run").id();
    let executes = move || fs::read_link(format!("/proc/{ran}/exe")).ok();
    wait_until(|| executes().as_ref() == Some(&program));
    watch.add_watch(&place, AddWatchFlags::IN_CREATE).expect("watch");
    std::env::set_current_dir(place.join("part")).expect("change directory");
    stage.child("a child of it", |stage| unchanged(stage.dir()));
    let files = [outer, removed, gone, mapped];
    let seen = files.map(|file| (Seen::of(file), link(file), file));
    let named = [outer, mapped];
    let mut same = unchanged(stage.dir());
    move |findings: &mut Findings| {
        if findings.sabotage() {
            unmount(&shown);
        }
        same(findings);
        for (seen, before, file) in &seen {
            let what = before.display().to_string();
            seen.compare(findings, &what, *file);
            if named.contains(file) {
                findings.same(format!("link of {what}"), before, &link(*file));
            }
        }
        findings.same(
            "content",
            &b"of one".to_vec(),
            &fs::read(place.join("inner")).unwrap_or_default(),
        );
        memory.compare(findings, "a mapped file", 0, 7);
        let mut again = vec![0; PAGE];
        let read = File::open(place.join("mapped")).and_then(|mut file| file.read_exact(&mut again));
        findings.take("read what is mapped", read);
        findings.same("what is mapped", &memory.read(0, PAGE), &again);
        findings.same(
            "common",
            &b"common".to_vec(),
            &fs::read(common.join("file")).unwrap_or_default(),
        );
        let mut waited = [0; 5];
        findings.take("read the fifo", fifo.read_exact(&mut waited));
        findings.same("what waited in the fifo", b"waits", &waited);
        findings.take("write to the fifo", fifo.write_all(&waited));
        findings.take(
            "a new file",
            fs::write(place.join("new"), "").and_then(|()| fs::remove_file(place.join("new"))),
        );
        let events = watch.read_events().map_or(0, |events| events.len());
        findings.same("what the watch tells", &1, &events);
        findings.same("a program of the namespace", &Some(place.join("program")), &executes());
        let connected = UnixStream::connect(shown.join("socket"));
        if findings.take("connect", connected).is_some() {
            findings.take("accept", listener.accept());
        }
    }
}

fn file_of(number: RawFd) -> std::mem::ManuallyDrop<File> {
    victims::descriptor::borrowed(number)
}

/// A namespace that shares mounts with the one that it was made from.
fn member(stage: &Stage, how: MsFlags) -> impl FnMut(&mut Findings) + use<> {
    unshare(CloneFlags::CLONE_NEWNS).expect("unshare");
    if how == MsFlags::MS_SLAVE {
        change(Path::new("/"), MsFlags::MS_REC | how);
    }
    let mut same = unchanged(stage.dir());
    move |findings| same(findings)
}

/// A PID namespace whose processes its own /proc shows, and the next one below it.
fn nested(stage: &Stage, depth: usize) {
    if depth == 0 {
        return;
    }
    let name = format!("link {depth}");
    stage.expect(&name);
    first(|| {
        stage.act(&name, move |stage| {
            unshare(CloneFlags::CLONE_NEWNS).expect("unshare");
            change(Path::new("/"), ALL_PRIVATE);
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            nix::mount::mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).expect("mount");
            nested(stage, depth - 1);
            let status = open(Path::new("/proc/self/status"), libc::O_RDONLY);
            let (listed, mut same) = (processes(), unchanged(stage.dir()));
            move |findings: &mut Findings| {
                same(findings);
                findings.same("processes in /proc", &listed, &processes());
                findings.same("own id in /proc", &"1".to_owned(), &own::status("Pid"));
                let file = link(status);
                findings.same("an open file of /proc", &PathBuf::from("/proc/1/status"), &file);
            }
        })
    });
    stage.wait_for_part(&name);
}

/// All that /proc shows.
fn processes() -> Vec<u32> {
    let listed = fs::read_dir("/proc").expect("list");
    let names = listed
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut all: Vec<u32> = names.collect();
    all.sort_unstable();
    all
}
