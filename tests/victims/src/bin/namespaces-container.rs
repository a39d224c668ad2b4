//! Processes in a set of namespaces of their own that a user namespace owns, as containers without root have it: users,
//! PIDs with a /proc, mounts with a tmpfs, names, IPC, a network, cgroups; and one set inside of another.

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::sethostname,
};
use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};
use victims::{
    Findings, Stage, Team, call,
    mounts::{below, change, filesystem},
    own, play,
    stage::fork,
    users::become_root,
};

/// linux/nsfs.h.
const NS_GET_USERNS: libc::Ioctl = 0xb701;
const KINDS: [&str; 6] = ["uts", "ipc", "net", "cgroup", "pid", "mnt"];

fn main() {
    play(|stage| {
        container(stage, 2);
        stage.child("mounts alone", |stage| {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).expect("unshare");
            become_root();
            change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            let place = filesystem("tmpfs", stage.path("alone"), MsFlags::empty(), "size=1m");
            fs::write(place.join("file"), b"seen here alone").expect("write");
            let mut team = Team::default();
            team.spawn("thread", || member(["mnt"].as_slice()));
            let mut check = inside(place, &["mnt"]);
            move |findings: &mut Findings| {
                team.check(findings);
                check(findings);
            }
        });
        |_: &mut Findings| {}
    })
}

fn container(stage: &Stage, depth: usize) {
    if depth == 0 {
        return;
    }
    let name = format!("first of {depth}");
    stage.child(&format!("maker of {depth}"), |stage| {
        unshare(
            CloneFlags::CLONE_NEWUSER
                | CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWCGROUP,
        )
        .expect("unshare");
        become_root();
        stage.expect(&name);
        fork(|| {
            stage.act(&name, |stage| {
                unshare(CloneFlags::CLONE_NEWNS).expect("unshare");
                change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE);
                filesystem("proc", PathBuf::from("/proc"), MsFlags::empty(), "");
                sethostname(format!("box{depth}")).expect("a name");
                victims::socket::raise_loopback();
                let place = filesystem(
                    "tmpfs",
                    stage.path(&format!("tmp{depth}")),
                    MsFlags::MS_NODEV,
                    "size=1m",
                );
                fs::write(place.join("file"), format!("in box {depth}")).expect("write");
                container(stage, depth - 1);
                stage.child(&format!("child in {depth}"), |_| member(&KINDS));
                let mut check = inside(place, &KINDS);
                move |findings: &mut Findings| {
                    check(findings);
                    findings.same("own id", &1, &std::process::id());
                    let link = fs::read_link("/proc/self").expect("a link");
                    findings.same("/proc/self", &PathBuf::from("1"), &link);
                }
            })
        });
        stage.wait_for_part(&name);
        member(&KINDS[..4])
    });
}

/// One that sees a tmpfs, with a file that it has open, and may mount.
fn inside(place: PathBuf, kinds: &'static [&'static str]) -> impl FnMut(&mut Findings) + use<> {
    let mut check = member(kinds);
    let file = File::open(place.join("file")).expect("open");
    std::env::set_current_dir(&place).expect("chdir");
    let text = fs::read("file").expect("read");
    move |findings| {
        if findings.sabotage() {
            findings.take("a change", fs::write("file", b"other"));
        }
        check(findings);
        findings.same("the file", &text, &fs::read("file").unwrap_or_default());
        let [open, named] =
            [file.metadata(), fs::metadata(place.join("file"))].map(|found| found.ok().map(|m| m.ino()));
        findings.same("the open file and the named one", &open, &named);
        let none: Option<&str> = None;
        let point = place.join("point");
        findings.take("a folder", fs::create_dir_all(&point));
        findings.take("a mount", mount(none, &point, Some("tmpfs"), MsFlags::empty(), none));
        findings.take("its end", umount2(&point, MntFlags::empty()));
    }
}

/// Namespaces of these kinds are this user namespace's own; and what is mounted, who it is and what it is called stay.
fn member(kinds: &'static [&'static str]) -> impl FnMut(&mut Findings) + use<> {
    let look = move || {
        let user = fs::metadata("/proc/thread-self/ns/user").expect("a namespace").ino();
        let owned: Vec<bool> = kinds
            .iter()
            .map(|kind| owner(&format!("/proc/thread-self/ns/{kind}")) == user)
            .collect();
        let status = ["Uid", "CapEff", "NSpid"].map(|key| own::status_of("thread-self", key));
        let name = nix::sys::utsname::uname().expect("names").nodename().to_owned();
        // What others mount for a moment to see that they may is not counted.
        let mounts = below(Path::new("/"))
            .into_iter()
            .filter(|mount| !mount.contains("/point "));
        let cgroups = fs::read_to_string("/proc/thread-self/cgroup").expect("cgroups");
        (owned, status, name, mounts.count(), cgroups)
    };
    let before = look();
    move |findings| findings.same("owners, users, name, mounts, cgroups", &before, &look())
}

fn owner(path: &str) -> u64 {
    let file = File::open(path).expect("open");
    // SAFETY: no argument.
    let number = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_USERNS) };
    if number < 0 {
        return 0;
    }
    let inode = fs::metadata(format!("/proc/self/fd/{number}")).map_or(0, |found| found.ino());
    call::close(number);
    inode
}
