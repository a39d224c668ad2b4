//! PID namespaces below the victim's: five below each other with three tasks each, several beside each other, entered from
//! above, left by a parent, with orphans of their own; and processes whose children are to be born elsewhere.

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::signal::{SigSet, Signal},
};
use std::{
    fs::File,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};
use victims::{
    Findings, Stage, Team, call, own, play,
    stage::{first, fork, wait_until},
    timer::{Timer, block},
};

const DEPTH: usize = 5;

fn main() {
    play(|stage| {
        level(stage, DEPTH);
        beside(stage, "a namespace beside it");
        entered(stage);
        children_to_come(stage);
        no_children_to_come(stage);
        let mut check = member();
        move |findings: &mut Findings| {
            check(findings);
            // It sees those below by other numbers.
            for part in ["link 5", "a namespace beside it"] {
                let seen = own::status_of(&pid_of(part, 0).to_string(), "NSpid");
                findings.same(format!("ids of {part}"), &format!("{} 1", pid_of(part, 0)), &seen);
            }
        }
    })
}

thread_local! {
    static KNOWN: std::cell::RefCell<std::collections::HashMap<String, i32>> = std::cell::RefCell::default();
}

/// The id of a part in this process's namespace, as it was when the part was made.
fn pid_of(part: &str, made: i32) -> i32 {
    KNOWN.with_borrow_mut(|known| {
        if made != 0 {
            known.insert(part.to_owned(), made);
        }
        known.get(part).copied().unwrap_or(0)
    })
}

/// Forks the first process of a new PID namespace, which plays a part.
fn first_child<C: FnMut(&mut Findings)>(stage: &Stage, name: &str, build: impl FnOnce(&Stage) -> C) {
    stage.expect(name);
    let pid = first(|| stage.act(name, build));
    stage.wait_for_part(name);
    pid_of(name, pid);
}

/// All ids of a task are as they were, on all levels.
fn ids() -> impl FnMut(&mut Findings) + use<> {
    let look = || {
        let lines = ["NSpid", "NSpgid", "NSsid"].map(own::status);
        (own::family(), call::gettid(), lines)
    };
    let before = look();
    move |findings| {
        findings.same(
            "(process, parent, group, session), thread, on all levels",
            &before,
            &look(),
        );
    }
}

/// What a process of a namespace finds: its ids, that nobody else is seen, and that a call to its own ids works.
fn member() -> impl FnMut(&mut Findings) + use<> {
    let mut ids = ids();
    move |findings| {
        if findings.sabotage() {
            // SAFETY: plain numbers.
            unsafe { libc::setpgid(0, 0) };
        }
        ids(findings);
        findings.take("signal to itself", call::kill(std::process::id() as i32, 0));
        findings.that(call::kill(4_000_000, 0).is_err(), "somebody is 4,000,000");
    }
}

/// A namespace of three tasks and the next one below it.
fn level(stage: &Stage, depth: usize) {
    if depth == 0 {
        return;
    }
    first_child(stage, &format!("link {depth}"), move |stage| {
        if depth.is_multiple_of(2) {
            // SAFETY: no arguments.
            assert!(unsafe { libc::setsid() } > 0, "setsid");
        }
        level(stage, depth - 1);
        stage.child(&format!("child on level {depth}"), |_| {
            set_group(0, 0);
            member()
        });
        orphan(stage, &format!("orphan on level {depth}"));
        let pidfd = pidfd_of(pid_of(&format!("link {}", depth - 1), 0));
        let mut timer = own_timer();
        let mut team = Team::default();
        team.spawn("thread", ids);
        let mut check = member();
        move |findings: &mut Findings| {
            check(findings);
            team.check(findings);
            timer(findings);
            findings.same("own id", &1, &std::process::id());
            if let Some(pidfd) = &pidfd {
                let below = pid_of(&format!("link {}", depth - 1), 0);
                let text = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", pidfd.as_raw_fd()));
                let text = text.unwrap_or_default();
                let told = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
                let told: Vec<i32> = told
                    .unwrap_or("")
                    .split_whitespace()
                    .filter_map(|id| id.parse().ok())
                    .collect();
                let own = own::status("NSpid").split(' ').count();
                findings.same("a descriptor of the process below", &Some(&below), &told.get(own - 1));
                findings.same("its own id", &Some(&1), &told.last());
            }
        }
    });
}

fn pidfd_of(pid: i32) -> Option<OwnedFd> {
    // SAFETY: plain numbers; the descriptor is new.
    (pid != 0).then(|| unsafe {
        let number = call::checked(libc::syscall(libc::SYS_pidfd_open, pid, 0)).expect("pidfd_open");
        OwnedFd::from_raw_fd(number as i32)
    })
}

/// A timer that signals this thread by its id here.
fn own_timer() -> impl FnMut(&mut Findings) + use<> {
    block(libc::SIGUSR2);
    let own = call::gettid();
    let timer = Timer::make(libc::CLOCK_MONOTONIC, libc::SIGEV_THREAD_ID, libc::SIGUSR2, 77, own).expect("a timer");
    move |findings: &mut Findings| {
        timer.set(false, 1, 0);
        let set = SigSet::from(Signal::SIGUSR2);
        findings.same("the timer's signal", &Ok(Signal::SIGUSR2), &set.wait());
    }
}

/// Played by a process whose parent has ended and that the namespace's first has got.
fn orphan(stage: &Stage, name: &str) {
    stage.expect(name);
    let parent = fork(|| {
        fork(|| {
            stage.act(name, |_| {
                // SAFETY: no arguments.
                assert!(wait_until(|| unsafe { libc::getppid() } == 1), "nobody adopts");
                member()
            })
        });
    });
    call::wait(parent, 0).expect("reap the child");
    stage.wait_for_part(name);
}

/// A process that has left for a new namespace with unshare(2), whose children are born there: the first, and another one.
fn beside(stage: &Stage, name: &str) {
    first_child(stage, name, |_| member());
    stage.child("unshared", |stage| {
        unshare(CloneFlags::CLONE_NEWPID).expect("unshare");
        stage.child("first of the unshared", |stage| {
            stage.child("child of that", |_| member());
            member()
        });
        stage.child("second of the unshared", |_| member());
        let mut check = member();
        let for_children = of_children();
        move |findings: &mut Findings| {
            check(findings);
            let [there, now] = [&for_children, &of_children()].map(|found| found.is_some());
            findings.same("has a namespace for children", &there, &now);
            let grandchild = fork(|| {
                let inside = own::status("NSpid").split(' ').count();
                std::process::exit(inside as i32);
            });
            let ended = call::wait(grandchild, 0).expect("reap");
            findings.same(
                "levels of a new child",
                &(own::status("NSpid").split(' ').count() + 1),
                &(ended.1 as usize >> 8),
            );
        }
    });
}

/// A process whose parent is above its namespace, by setns(2).
fn entered(stage: &Stage) {
    let below = pid_of("link 5", 0);
    stage.child("enters", move |stage| {
        let file = File::open(format!("/proc/{below}/ns/pid")).expect("the namespace");
        setns(file, CloneFlags::CLONE_NEWPID).expect("setns");
        stage.child("entered", |stage| {
            stage.child("child of the entered", |_| member());
            let mut check = member();
            move |findings: &mut Findings| {
                check(findings);
                // SAFETY: no arguments.
                findings.same("parent", &0, &unsafe { libc::getppid() });
            }
        });
        member()
    });
}

/// What /proc tells of the namespace that children are born into.
fn of_children() -> Option<std::path::PathBuf> {
    std::fs::read_link("/proc/self/ns/pid_for_children").ok()
}

/// A process that has made a namespace, in which nobody has been yet.
fn children_to_come(stage: &Stage) {
    stage.child("no child yet", |_| {
        unshare(CloneFlags::CLONE_NEWPID).expect("unshare");
        let mut check = member();
        move |findings: &mut Findings| {
            check(findings);
            findings.same("has no namespace for children yet", &None, &of_children());
        }
    });
}

/// A process whose children's namespace is gone with its first.
fn no_children_to_come(stage: &Stage) {
    stage.child("no child any more", |_| {
        unshare(CloneFlags::CLONE_NEWPID).expect("unshare");
        let only = fork(|| {});
        call::wait(only, 0).expect("reap");
        let mut check = member();
        move |findings: &mut Findings| {
            check(findings);
            // SAFETY: it can't fork.
            let child = unsafe { libc::fork() };
            let error = std::io::Error::last_os_error().raw_os_error();
            findings.same("a fork", &(-1, Some(libc::ENOMEM)), &(child, error));
        }
    });
}

fn set_group(pid: i32, group: i32) {
    // SAFETY: plain numbers.
    assert!(unsafe { libc::setpgid(pid, group) } == 0, "setpgid");
}
