//! User namespaces below the tree's: with one user, with many, with none yet, nested; with threads, with other namespaces
//! that are theirs, and with PID namespaces.

use nix::{
    sched::{CloneFlags, unshare},
    sys::utsname::uname,
    unistd::{Gid, getgroups, sethostname},
};
use std::{
    fs::{self, File},
    os::fd::AsRawFd,
};
use victims::{
    Findings, Stage, Team, call, own, play,
    stage::{first, fork},
    users::{become_user, new_user},
};

/// linux/nsfs.h.
const NS_GET_USERNS: libc::Ioctl = 0xb701;
const NS_GET_OWNER_UID: libc::Ioctl = 0xb704;

fn main() {
    play(|stage| {
        stage.child("root of its own", |stage| {
            unshare(CloneFlags::CLONE_NEWUSER).expect("unshare");
            fs::write("/proc/self/setgroups", "deny").expect("deny");
            fs::write("/proc/self/uid_map", "0 0 1").expect("a map");
            fs::write("/proc/self/gid_map", "0 0 1").expect("a map");
            stage.child("child of root", |_| member());
            stage.child("with a name", |_| {
                unshare(CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWNET)
                    .expect("unshare");
                sethostname("inner").expect("a name");
                let mut check = member();
                move |findings: &mut Findings| {
                    check(findings);
                    findings.take("its own name", sethostname("inner"));
                }
            });
            member()
        });
        stage.child("nobody", |_| {
            unshare(CloneFlags::CLONE_NEWUSER).expect("unshare");
            member()
        });
        many(stage);
        stage.child("waits for a first", |stage| {
            new_user(|| CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID);
            become_user(0, 0, &[]);
            pids(stage);
            member()
        });
        stage.child("unshares pids at last", |_| {
            new_user(|| CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID);
            let mut check = member();
            let mut child = None;
            move |findings: &mut Findings| {
                check(findings);
                // The first that is born there is the last.
                let ended = child.get_or_insert_with(|| {
                    let first = fork(|| {
                        let is_own = owner("/proc/self/ns/pid") == owner_of_own();
                        std::process::exit(i32::from(!is_own));
                    });
                    call::wait(first, 0).expect("reap").1
                });
                findings.same("whose the PID namespace of a child is", &0, ended);
            }
        });
        member()
    })
}

/// One with many users, and one below it; some have threads.
fn many(stage: &Stage) {
    stage.child("many users", |stage| {
        new_user(|| CloneFlags::CLONE_NEWUSER);
        become_user(0, 0, &[0, 7]);
        stage.child("user 5001", |_| {
            become_user(5001, 33, &[]);
            member()
        });
        stage.child("below", |stage| {
            unshare(CloneFlags::CLONE_NEWUSER).expect("unshare");
            fs::write("/proc/self/uid_map", "0 0 1").expect("a map");
            stage.child("child below", |_| member());
            let mut team = Team::default();
            team.spawn("thread below", member);
            let mut check = member();
            move |findings: &mut Findings| {
                team.check(findings);
                check(findings);
            }
        });
        let mut team = Team::default();
        team.spawn("thread", member);
        team.spawn("thread with a name", || {
            unshare(CloneFlags::CLONE_NEWUTS).expect("unshare");
            sethostname("of a thread").expect("a name");
            member()
        });
        team.spawn("thread of a user", || {
            // SAFETY: numbers; of this thread alone, as the C library's are of all.
            call::checked(unsafe { libc::syscall(libc::SYS_setresuid, 7, 8, 9) }).expect("setresuid");
            member()
        });
        let mut check = member();
        move |findings: &mut Findings| {
            team.check(findings);
            check(findings);
        }
    });
}

/// A PID namespace of this user namespace, and one of one below.
fn pids(stage: &Stage) {
    stage.expect("first");
    // It is born where its parent has unshared to.
    fork(|| {
        stage.act("first", |stage| {
            stage.child("below the first", |stage| {
                unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWUTS).expect("unshare");
                stage.expect("first below");
                first(|| stage.act("first below", |_| first_of_own()));
                stage.wait_for_part("first below");
                member()
            });
            stage.child("child of the first", |_| member());
            first_of_own()
        })
    });
    stage.wait_for_part("first");
}

/// PID 1 of a namespace that is its user namespace's.
fn first_of_own() -> impl FnMut(&mut Findings) + use<> {
    let mut check = member();
    move |findings: &mut Findings| {
        check(findings);
        findings.same("own id", &1, &std::process::id());
        findings.same(
            "whose the PID namespace is",
            &owner_of_own(),
            &owner("/proc/self/ns/pid"),
        );
    }
}

fn inode_of(number: i32) -> u64 {
    // SAFETY: zeros are a stat.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: room for the answer.
    unsafe { libc::fstat(number, &raw mut found) };
    found.st_ino
}

/// The user namespace whose a namespace is; 0 where it is not seen.
fn owner(path: &str) -> u64 {
    let file = File::open(path).expect("open");
    // SAFETY: no argument.
    let number = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_USERNS) };
    if number < 0 {
        return 0;
    }
    let inode = inode_of(number);
    call::close(number);
    inode
}

fn owner_of_own() -> u64 {
    inode_of(File::open("/proc/self/ns/user").expect("open").as_raw_fd())
}

fn member() -> impl FnMut(&mut Findings) + use<> {
    let look = || {
        let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/{name}")).expect("read");
        let maps = ["uid_map", "gid_map", "setgroups"].map(|name| {
            read(name)
                .split_ascii_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        });
        let status = [
            "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NSpid",
        ];
        let status = status.map(|key| own::status_of("thread-self", key));
        let groups: Vec<u32> = getgroups().expect("groups").into_iter().map(Gid::as_raw).collect();
        let owners =
            ["uts", "ipc", "net", "pid"].map(|kind| owner(&format!("/proc/thread-self/ns/{kind}")) == owner_of_own());
        let user = File::open("/proc/thread-self/ns/user").expect("open");
        let mut maker: u32 = 0;
        // SAFETY: room for the answer.
        unsafe { libc::ioctl(user.as_raw_fd(), NS_GET_OWNER_UID, &raw mut maker) };
        let name = uname().expect("names").nodename().to_owned();
        (maps, status, groups, owners, maker, name)
    };
    let before = look();
    move |findings| {
        if findings.sabotage() {
            // Some have no right to.
            let _ = call::prctl(libc::PR_CAPBSET_DROP, [0, 0, 0, 0]);
        }
        findings.same("maps, users, capabilities, owners, maker, name", &before, &look());
    }
}
