//! Namespaces that no task is in: kept by descriptors, by mounts, under other mounts and in another mount namespace; of every
//! kind that can be, some of a user namespace that nothing else keeps. And mounts of those that tasks are in.

use nix::{
    ifaddrs::getifaddrs,
    mount::{MntFlags, MsFlags, umount2},
    net::if_::InterfaceFlags,
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare},
    sys::stat::fstat,
    unistd::{Pid, gethostname, sethostname},
};
use std::{
    fs::{self, File},
    io::Read,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};
use victims::{
    Findings, Stage, call,
    mounts::{bind, change, filesystem},
    play,
    stage::fork,
};

/// linux/nsfs.h.
const NS_GET_USERNS: libc::Ioctl = 0xb701;
const NS_GET_PARENT: libc::Ioctl = 0xb702;
/// CLONE_NEWTIME of linux/sched.h.
const NEW_TIME: CloneFlags = CloneFlags::from_bits_retain(0x80);
/// More than any machine has run.
const LATE: i64 = 500_000_000;

fn main() {
    play(|stage| {
        let top = filesystem("tmpfs", stage.path("kept"), MsFlags::empty(), "size=1m");
        change(&top, MsFlags::MS_PRIVATE);
        let mut checks = vec![
            by_descriptors(&top),
            by_owner(),
            by_mounts(&top),
            hidden(&top),
            mounts_kept(&top),
        ];
        stage.child("elsewhere", elsewhere);
        let own = ["uts", "net", "user", "pid"].map(|kind| {
            let place = top.join(format!("own-{kind}"));
            fs::write(&place, "").expect("a file");
            bind(&Path::new("/proc/self/ns").join(kind), &place, MsFlags::empty());
            (kind, place)
        });
        move |findings: &mut Findings| {
            if findings.sabotage() {
                umount2(&own[0].1, MntFlags::MNT_DETACH).expect("unmount");
            }
            for check in &mut checks {
                check(findings);
            }
            for (kind, place) in &own {
                let is = fs::metadata(place).map(|found| found.ino()).ok();
                let own = fs::metadata(Path::new("/proc/self/ns").join(kind));
                let own = own.map(|found| found.ino()).ok();
                findings.same(format!("a mount of the own {kind} namespace"), &own, &is);
            }
        }
    })
}

type Check = Box<dyn FnMut(&mut Findings)>;

/// Has a child make namespaces, and `keep` take what it wants of its directory in /proc, before it ends.
fn made<T>(flags: CloneFlags, inside: impl FnOnce(), keep: impl FnOnce(&Path) -> T) -> T {
    let [ready, mapped] = [call::pipe(0), call::pipe(0)];
    let child = fork(|| {
        unshare(flags).expect("unshare");
        call::write(ready[1], b"1").expect("tell");
        call::read(mapped[0], 1).expect("wait");
        inside();
        call::write(ready[1], b"2").expect("tell");
        call::read(mapped[0], 1).expect("wait");
    });
    let directory = PathBuf::from(format!("/proc/{child}"));
    call::read(ready[0], 1).expect("wait");
    if flags.contains(CloneFlags::CLONE_NEWUSER) {
        for map in ["uid_map", "gid_map"] {
            fs::write(directory.join(map), "0 1000 10\n70 0 1\n").expect("a map");
        }
    }
    call::write(mapped[1], b"1").expect("tell");
    call::read(ready[0], 1).expect("wait");
    let kept = keep(&directory.join("ns"));
    call::kill(child, libc::SIGKILL).expect("kill");
    call::wait(child, 0).expect("reap");
    for end in ready.into_iter().chain(mapped) {
        call::close(end);
    }
    kept
}

/// What a child finds that has entered a namespace.
fn inside(namespace: impl AsFd, look: impl FnOnce() -> String) -> String {
    let [out, end] = call::pipe(0);
    let child = fork(|| {
        let found = match setns(namespace, CloneFlags::empty()) {
            Ok(()) => look(),
            Err(error) => format!("setns: {error}"),
        };
        call::write(end, found.as_bytes()).expect("tell");
    });
    call::close(end);
    // SAFETY: it is this function's own.
    let mut out = unsafe { File::from_raw_fd(out) };
    let mut found = String::new();
    out.read_to_string(&mut found).expect("an answer");
    call::wait(child, 0).expect("reap");
    found
}

fn name() -> String {
    gethostname().expect("a name").to_string_lossy().into_owned()
}

fn devices() -> String {
    let all = getifaddrs().expect("devices");
    let told = all.map(|device| {
        let up = device.flags.contains(InterfaceFlags::IFF_UP);
        format!("{} {up}", device.interface_name)
    });
    let mut told: Vec<String> = told.collect();
    told.dedup();
    told.join(", ")
}

fn cgroups() -> String {
    fs::read_to_string("/proc/self/cgroup").expect("cgroups")
}

fn users() -> String {
    let map = fs::read_to_string("/proc/self/uid_map").expect("a map");
    map.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_late() -> String {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    (time.tv_sec > LATE).to_string()
}

fn segments() -> String {
    let text = fs::read_to_string("/proc/sysvipc/shm").expect("segments");
    (text.lines().count() - 1).to_string()
}

fn delay() {
    fs::write("/proc/self/timens_offsets", format!("monotonic {LATE} 0\n")).expect("offsets");
}

fn inode(namespace: impl AsFd) -> u64 {
    fstat(namespace).expect("a file").st_ino
}

/// The user namespace that one belongs to; the one above a user namespace.
fn owner(namespace: impl AsFd) -> OwnedFd {
    related(namespace, NS_GET_USERNS)
}

fn related(namespace: impl AsFd, how: libc::Ioctl) -> OwnedFd {
    // SAFETY: takes no argument.
    let found = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), how) };
    call::checked(found.into()).expect("a namespace");
    // SAFETY: it is new.
    unsafe { OwnedFd::from_raw_fd(found as RawFd) }
}

fn open(directory: &Path, name: &str) -> OwnedFd {
    File::open(directory.join(name)).expect("open").into()
}

/// One of each kind, each by a descriptor; and the same one by two.
fn by_descriptors(top: &Path) -> Check {
    let named = || sethostname("held").expect("a name");
    let uts = made(CloneFlags::CLONE_NEWUTS, named, |ns| [open(ns, "uts"), open(ns, "uts")]);
    let net = made(CloneFlags::CLONE_NEWNET, victims::socket::raise_loopback, |ns| {
        open(ns, "net")
    });
    let down = made(CloneFlags::CLONE_NEWNET, || (), |ns| open(ns, "net"));
    let ipc = made(CloneFlags::CLONE_NEWIPC, || (), |ns| open(ns, "ipc"));
    let time = made(NEW_TIME, delay, |ns| open(ns, "time_for_children"));
    let cgroup = made(CloneFlags::CLONE_NEWCGROUP, || (), |ns| open(ns, "cgroup"));
    let user = made(CloneFlags::CLONE_NEWUSER, || (), |ns| open(ns, "user"));
    let nobody = made(
        CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWIPC,
        || (),
        |ns| open(ns, "ipc"),
    );
    let (ended, led) = ended();
    let ended_place = place(top, "ended");
    bind(
        Path::new(&format!("/proc/{led}/ns/pid_for_children")),
        &ended_place,
        MsFlags::empty(),
    );
    Box::new(move |findings| {
        findings.same("two descriptors of one", &inode(&uts[0]), &inode(&uts[1]));
        findings.same("a name", "held", inside(&uts[0], name).as_str());
        findings.same("devices", "lo true", inside(&net, devices).as_str());
        findings.same("devices of another", "lo false", inside(&down, devices).as_str());
        findings.same("segments", "0", inside(&ipc, segments).as_str());
        // A restored one may have the number that this one had before.
        let own = fs::metadata("/proc/self/ns/ipc").expect("ipc").ino();
        findings.that(own != inode(&ipc), "an IPC namespace is the own one");
        findings.same("whether it is late", "true", inside(&time, is_late).as_str());
        findings.same("cgroups", cgroups().as_str(), inside(&cgroup, cgroups).as_str());
        findings.same("users", "0 1000 10 70 0 1", inside(&user, users).as_str());
        let above = fs::metadata("/proc/self/ns/user").map(|found| found.ino()).ok();
        findings.same("what is above it", &above, &Some(inode(owner(&user))));
        findings.that(Some(inode(owner(&nobody))) != above, "whose it is differs");
        let own = fs::metadata("/proc/self/ns/pid").map(|found| found.ino()).ok();
        findings.same(
            "what PIDs that have ended are below",
            &own,
            &Some(inode(related(&ended, NS_GET_PARENT))),
        );
        let mounted = fs::metadata(&ended_place).map(|found| found.ino()).ok();
        findings.same("a mount of these", &Some(inode(&ended)), &mounted);
        let children = fs::metadata(format!("/proc/{led}/ns/pid_for_children")).map(|found| found.ino());
        findings.same(
            "where children of another can't be born",
            &Some(inode(&ended)),
            &children.ok(),
        );
    })
}

/// A PID namespace whose PID 1 has ended, and a process that leads its children there.
fn ended() -> (OwnedFd, i32) {
    let [ready, end] = call::pipe(0);
    let led = fork(|| {
        unshare(CloneFlags::CLONE_NEWPID).expect("unshare");
        let first = fork(|| ());
        call::wait(first, 0).expect("reap");
        call::write(end, b"1").expect("tell");
        loop {
            nix::unistd::pause();
        }
    });
    call::read(ready, 1).expect("wait");
    call::close(ready);
    call::close(end);
    (open(Path::new(&format!("/proc/{led}/ns")), "pid_for_children"), led)
}

/// Those of one user namespace, which only they keep.
fn by_owner() -> Check {
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWNET;
    let more = || {
        sethostname("owned").expect("a name");
        unshare(NEW_TIME).expect("unshare");
        delay();
    };
    let kept = made(flags, more, |ns| {
        ["uts", "net", "time_for_children"].map(|kind| open(ns, kind))
    });
    Box::new(move |findings| {
        let owners = kept.each_ref().map(owner);
        let all = owners.each_ref().map(inode);
        findings.same("whose they are", &[all[0]; 3], &all);
        findings.same("its users", "0 1000 10 70 0 1", inside(&owners[0], users).as_str());
        findings.same("its name", "owned", inside(&kept[0], name).as_str());
        findings.same("its devices", "lo false", inside(&kept[1], devices).as_str());
        findings.same("its clock", "true", inside(&kept[2], is_late).as_str());
    })
}

fn place(top: &Path, name: &str) -> PathBuf {
    let place = top.join(name);
    fs::write(&place, "").expect("a file");
    place
}

/// Some by mounts, and a descriptor that was opened by one.
fn by_mounts(top: &Path) -> Check {
    let keep = |flags, act: fn(), name: &str| {
        let place = place(top, name);
        made(flags, act, |ns| bind(&ns.join(name), &place, MsFlags::empty()));
        place
    };
    let named = || sethostname("mounted").expect("a name");
    let uts = keep(CloneFlags::CLONE_NEWUTS, named, "uts");
    let net = keep(CloneFlags::CLONE_NEWNET, victims::socket::raise_loopback, "net");
    let ipc = keep(CloneFlags::CLONE_NEWIPC, || (), "ipc");
    let time = keep(NEW_TIME, delay, "time_for_children");
    let user = keep(CloneFlags::CLONE_NEWUSER, || (), "user");
    let opened = File::open(&uts).expect("open");
    Box::new(move |findings| {
        let inside = |path: &Path, look: fn() -> String| match File::open(path) {
            Ok(file) => inside(file, look),
            Err(error) => error.to_string(),
        };
        findings.same("a mounted name", "mounted", inside(&uts, name).as_str());
        findings.same("mounted devices", "lo true", inside(&net, devices).as_str());
        findings.same("mounted segments", "0", inside(&ipc, segments).as_str());
        findings.same("a mounted clock", "true", inside(&time, is_late).as_str());
        findings.same("mounted users", "0 1000 10 70 0 1", inside(&user, users).as_str());
        let link = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        findings.same("the link of one opened by a mount", &Some(uts.clone()), &link.ok());
        findings.same(
            "what it is",
            &inode(&opened),
            &fs::metadata(&uts).map_or(0, |found| found.ino()),
        );
    })
}

/// One under another, at one place.
fn hidden(top: &Path) -> Check {
    let place = place(top, "two");
    for name in ["below", "above"] {
        let named = || sethostname(name).expect("a name");
        made(CloneFlags::CLONE_NEWUTS, named, |ns| {
            bind(&ns.join("uts"), &place, MsFlags::empty());
        });
    }
    Box::new(move |findings| {
        let names = || {
            let mut found = Vec::new();
            unshare(CloneFlags::CLONE_NEWNS).expect("unshare");
            for _ in 0..2 {
                found.push(File::open(&place).map_or_else(|error| error.to_string(), |file| inside(file, name)));
                umount2(&place, MntFlags::MNT_DETACH).expect("unmount");
            }
            found.join(", ")
        };
        let own = File::open("/proc/self/ns/uts").expect("open");
        findings.same("one above the other", "above, below", inside(own, names).as_str());
    })
}

/// Mount namespaces: by a descriptor, and by a mount.
fn mounts_kept(top: &Path) -> Check {
    let inner = top.join("inner");
    fs::create_dir_all(&inner).expect("a folder");
    let place = place(top, "mnt");
    let mounted = |text: &'static str| {
        let inner = inner.clone();
        move || {
            filesystem("tmpfs", inner.clone(), MsFlags::empty(), "size=1m");
            fs::write(inner.join("text"), text).expect("write");
        }
    };
    let held = made(CloneFlags::CLONE_NEWNS, mounted("of a descriptor"), |ns| {
        open(ns, "mnt")
    });
    // By numbers of which each processor has its own the kernel may take it to be older, and then refuses to mount it.
    let keep = |processor: usize| {
        let there = || {
            let mut processors = CpuSet::new();
            processors.set(processor).expect("a processor");
            // One that it may not run on is none that it got a number from.
            let _ = sched_setaffinity(Pid::from_raw(0), &processors);
            unshare(CloneFlags::CLONE_NEWNS).expect("unshare");
            mounted("of a mount")();
        };
        made(CloneFlags::empty(), there, |ns| {
            let none: Option<&str> = None;
            nix::mount::mount(Some(&ns.join("mnt")), &place, none, MsFlags::MS_BIND, none).is_ok()
        })
    };
    assert!(
        (0..CpuSet::count()).take(64).any(keep),
        "no mount namespace is young enough"
    );
    Box::new(move |findings| {
        let text = || fs::read_to_string(inner.join("text")).unwrap_or_else(|error| error.to_string());
        findings.same("a file in one", "of a descriptor", inside(&held, text).as_str());
        let by_mount = File::open(&place).map_or_else(|error| error.to_string(), |file| inside(file, text));
        findings.same("a file in another", "of a mount", by_mount.as_str());
        findings.that(!inner.join("text").exists(), "it is here, too");
    })
}

/// One that is mounted in another mount namespace alone, and one of the part's own.
fn elsewhere(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).expect("unshare");
    sethostname("of the part").expect("a name");
    change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    let top = filesystem("tmpfs", stage.path("elsewhere"), MsFlags::empty(), "size=1m");
    let [other, own] = [place(&top, "other"), place(&top, "own")];
    let named = || sethostname("elsewhere").expect("a name");
    made(CloneFlags::CLONE_NEWUTS, named, |ns| {
        bind(&ns.join("uts"), &other, MsFlags::empty());
    });
    bind(Path::new("/proc/self/ns/uts"), &own, MsFlags::empty());
    move |findings| {
        let found = File::open(&other).map_or_else(|error| error.to_string(), |file| inside(file, name));
        findings.same("one mounted elsewhere", "elsewhere", found.as_str());
        let [is, wanted] =
            [&own, Path::new("/proc/self/ns/uts")].map(|path| fs::metadata(path).map(|found| found.ino()).ok());
        findings.same("a mount of the own one of a part", &wanted, &is);
    }
}
