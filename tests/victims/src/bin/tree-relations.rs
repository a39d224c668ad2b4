//! Who is whose child, in which group and session: chains, sessions that a parent left, orphans of PID 1 and of a
//! subreaper, groups and sessions whose leader is dead.

use victims::{
    Findings, Stage, call, own, play,
    stage::{fork, wait_until},
};

fn main() {
    play(|stage| {
        let top = std::process::id() as i32;
        stage.child("child", |_| member());
        chain(stage, 5);
        stage.child("leader", |stage| {
            // Born before its parent makes a session, so it stays in the one the parent leaves.
            stage.child("left behind", |_| member());
            set_session();
            stage.child("in the new session", |_| member());
            orphan(stage, "orphan in a living session", top, || {});
            member()
        });
        group_without_leader(stage);
        orphan(stage, "orphan", top, || {});
        orphan(stage, "orphan in a dead session", top, set_session);
        group_in_a_dead_session(stage, top);
        orphan_with_family(stage, top);
        subreaper(stage, "subreaper", false);
        subreaper(stage, "subreaper in a session", true);
        member()
    })
}

/// The check of a process: all its ids are as they were.
fn member() -> impl FnMut(&mut Findings) + use<> {
    let before = (own::family(), call::gettid());
    move |findings| {
        if findings.sabotage() {
            // SAFETY: plain numbers.
            unsafe { libc::setpgid(0, 0) };
        }
        let now = (own::family(), call::gettid());
        findings.same("(process, parent, group, session), thread", &before, &now);
        findings.same("own id in /proc", &before.0[0].to_string(), &own::status("Pid"));
    }
}

/// A chain of processes, each a child of the one before, in turn with groups and sessions of their own.
fn chain(stage: &Stage, depth: usize) {
    if depth > 0 {
        stage.child(&format!("link {depth}"), move |stage| {
            match depth % 3 {
                0 => set_group(0, 0),
                1 => set_session(),
                _ => {}
            }
            chain(stage, depth - 1);
            member()
        });
    }
}

fn group_without_leader(stage: &Stage) {
    let [reads, writes] = call::pipe(0);
    let leader = fork(|| {
        call::close(writes);
        // Waits for the end of file.
        let _ = call::read(reads, 1);
    });
    set_group(leader, leader);
    for name in ["member of a dead group", "another member of it"] {
        stage.child(name, |_| {
            call::close(writes);
            set_group(0, leader);
            member()
        });
    }
    call::close(writes);
    call::close(reads);
    call::wait(leader, 0).expect("reap the leader");
}

/// Lets `name` be played by a process whose parent has ended and that `adopter` has got. What `before` does, the parent
/// does first.
fn orphan(stage: &Stage, name: &str, adopter: i32, before: impl FnOnce()) {
    stage.expect(name);
    fork_and_reap(|| {
        before();
        fork(|| {
            stage.act(name, |_| {
                adopted_by(adopter);
                member()
            })
        });
    });
    stage.wait_for_part(name);
}

/// An orphan in a group whose leader is dead, in a session whose leader is dead.
fn group_in_a_dead_session(stage: &Stage, adopter: i32) {
    let name = "orphan group in a dead session";
    stage.expect(name);
    fork_and_reap(|| {
        set_session();
        fork_and_reap(|| {
            set_group(0, 0);
            fork(|| {
                stage.act(name, |_| {
                    adopted_by(adopter);
                    member()
                })
            });
        });
    });
    stage.wait_for_part(name);
}

/// An orphan of a dead session that has a child in that session and one that made its own.
fn orphan_with_family(stage: &Stage, adopter: i32) {
    let name = "orphan with children";
    stage.expect(name);
    fork_and_reap(|| {
        set_session();
        fork(|| {
            stage.act(name, |stage| {
                adopted_by(adopter);
                stage.child("child of the orphan", |_| member());
                stage.child("child of the orphan with a session", |_| {
                    set_session();
                    member()
                });
                set_group(0, 0);
                member()
            })
        });
    });
    stage.wait_for_part(name);
}

fn subreaper(stage: &Stage, name: &str, has_session: bool) {
    stage.child(name, |stage| {
        if has_session {
            set_session();
        }
        call::prctl(libc::PR_SET_CHILD_SUBREAPER, [1, 0, 0, 0]).expect("become a subreaper");
        let own = std::process::id() as i32;
        orphan(stage, &format!("adopted by {name}"), own, || {});
        orphan(stage, &format!("adopted by {name}, dead session"), own, set_session);
        let mut check = member();
        move |findings: &mut Findings| {
            check(findings);
            let mut flag = 0_i32;
            let place = &raw mut flag as usize;
            findings.take(
                "subreaper flag",
                call::prctl(libc::PR_GET_CHILD_SUBREAPER, [place, 0, 0, 0]),
            );
            findings.same("subreaper flag", &1, &flag);
        }
    });
}

fn fork_and_reap(child: impl FnOnce()) {
    let pid = fork(child);
    call::wait(pid, 0).expect("reap the child");
}

fn adopted_by(adopter: i32) {
    // SAFETY: no arguments.
    let parent = || unsafe { libc::getppid() };
    assert!(wait_until(|| parent() == adopter), "{adopter} does not adopt");
}

fn set_session() {
    // SAFETY: no arguments.
    assert!(unsafe { libc::setsid() } > 0, "setsid");
}

fn set_group(pid: i32, group: i32) {
    // SAFETY: plain numbers.
    assert!(unsafe { libc::setpgid(pid, group) } == 0, "setpgid");
}
