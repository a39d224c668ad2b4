//! Tasks of one tree in several UTS, IPC, network and time namespaces: processes and threads, children that inherit them,
//! others that entered them, and descriptors of them.

use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sched::{CloneFlags, setns, unshare},
    sys::utsname::uname,
    unistd::sethostname,
};
use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
};
use victims::{
    Findings, Stage, Team, call, play,
    stage::{fork, wait_until},
};

const KINDS: [&str; 5] = ["uts", "ipc", "net", "time", "user"];
/// More than any machine has run.
const LATE: i64 = 500_000_000;

fn main() {
    play(|stage| {
        let named = stage.child("names", |stage| {
            unshare(CloneFlags::CLONE_NEWUTS).expect("unshare");
            sethostname("inner").expect("a name");
            stage.child("child of names", |_| member());
            let mut team = Team::default();
            team.spawn("thread with a name", || {
                unshare(CloneFlags::CLONE_NEWUTS).expect("unshare");
                sethostname("of a thread").expect("a name");
                member()
            });
            team.spawn("thread without", member);
            let mut check = member();
            move |findings: &mut Findings| {
                if findings.sabotage() {
                    sethostname("other").expect("a name");
                }
                team.check(findings);
                check(findings);
            }
        });
        let file = File::open(format!("/proc/{named}/ns/uts")).expect("open");
        stage.child("entered", |_| {
            setns(&file, CloneFlags::CLONE_NEWUTS).expect("setns");
            let mut check = member();
            move |findings: &mut Findings| {
                check(findings);
                findings.same(
                    "the namespace that was entered",
                    &inode("self", "uts"),
                    &inode(&named.to_string(), "uts"),
                );
            }
        });
        stage.child("ipc", |_| {
            unshare(CloneFlags::CLONE_NEWIPC).expect("unshare");
            member()
        });
        network(stage);
        clocks(stage);
        let mut check = member();
        move |findings: &mut Findings| {
            check(findings);
            let held = file.metadata().map(|found| found.ino()).ok();
            findings.same(
                "a descriptor of a child's namespace",
                &inode(&named.to_string(), "uts"),
                &held,
            );
        }
    })
}

fn network(stage: &Stage) {
    stage.child("network", |stage| {
        unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
        stage.child("network of a child, which is up", |_| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS).expect("unshare");
            victims::socket::raise_loopback();
            member()
        });
        stage.child("the same network", |_| member());
        member()
    });
}

/// One that has moved its children to other clocks, and these.
fn clocks(stage: &Stage) {
    stage.child("clocks", |stage| {
        // SAFETY: a number.
        call::checked(unsafe { libc::unshare(0x80) }.into()).expect("unshare");
        fs::write(
            "/proc/self/timens_offsets",
            format!("monotonic {LATE} 0\nboottime {LATE} 0\n"),
        )
        .expect("offsets");
        stage.child("late clocks", |stage| {
            stage.child("later clocks", |stage| {
                // SAFETY: a number.
                call::checked(unsafe { libc::unshare(0x80) }.into()).expect("unshare");
                let offsets = format!("monotonic {} 0\n", 2 * LATE);
                fs::write("/proc/self/timens_offsets", offsets).expect("offsets");
                stage.child("latest clocks", |_| clock(2 * LATE));
                clock(LATE)
            });
            clock(LATE)
        });
        let mut check = clock(0);
        move |findings: &mut Findings| {
            check(findings);
            let child = fork(|| {
                let late = seconds() > LATE;
                std::process::exit(i32::from(!late));
            });
            let ended = call::wait(child, 0).expect("reap");
            findings.same("clocks of a new child", &0, &ended.1);
        }
    });
}

fn seconds() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec
}

/// A clock that is this much later than the machine's, and goes on.
fn clock(late: i64) -> impl FnMut(&mut Findings) + use<> {
    let mut member = member();
    let mut last = seconds();
    move |findings| {
        member(findings);
        let now = seconds();
        findings.that(
            (last..last + 3000).contains(&now),
            format!("the clock went from {last} to {now}"),
        );
        findings.that(now >= late, format!("the clock shows {now}, not more than {late}"));
        findings.that(wait_until(|| seconds() > now), "the clock stands still");
        last = now;
    }
}

fn inode(who: &str, kind: &str) -> Option<u64> {
    fs::metadata(format!("/proc/{who}/ns/{kind}"))
        .map(|found| found.ino())
        .ok()
}

/// What a task finds of its namespaces: names, devices, and which its parent has, too.
fn member() -> impl FnMut(&mut Findings) + use<> {
    let look = || {
        // SAFETY: no arguments.
        let parent = unsafe { libc::getppid() }.to_string();
        let common: Vec<bool> = KINDS
            .iter()
            .map(|kind| inode("thread-self", kind) == inode(&parent, kind))
            .collect();
        let names = uname().expect("names");
        let text = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
        let devices: Vec<(String, bool)> = getifaddrs()
            .expect("devices")
            .map(|device| (device.interface_name, device.flags.contains(InterfaceFlags::IFF_UP)))
            .collect();
        (common, text(names.nodename()), text(names.domainname()), devices)
    };
    let before = look();
    move |findings| {
        findings.same(
            "which of uts, ipc, net, time, user the parent has; names; devices",
            &before,
            &look(),
        );
    }
}
