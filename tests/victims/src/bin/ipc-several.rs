//! Several IPC namespaces in a tree, with the same keys, names and identifiers in each: segments that are attached where their
//! namespace is not, adjustments of threads, queues that are open elsewhere, mounts of queues, settings; some are user
//! namespaces', also one's that does not know the outer root, and one of a process that was born in such a one.

use nix::{
    mount::MsFlags,
    sched::{CloneFlags, setns, unshare},
};
use std::{
    fs::{self, File},
    os::{fd::RawFd, unix::fs::MetadataExt},
    path::Path,
};
use victims::{
    Findings, Stage, Team, call,
    ipc::{FREE, Objects, PAGES, attach, attached, detach, most_messages},
    memory::{Mapping, PAGE},
    mounts, play,
    stage::first,
    users::{become_user, new_user},
    wait_until,
};

const IPC: CloneFlags = CloneFlags::CLONE_NEWIPC;

fn main() {
    play(|stage| {
        let mut own = Objects::make(1, true);
        let base = Base {
            memory: own.memory,
            jobs: own.jobs,
            ids: own.ids(),
        };
        let second = stage.child("second", move |_| second(base));
        stage.child("entered", |stage| entered(stage, base, second));
        stage.child("threads", |_| threads(base));
        stage.child("user", |stage| user(stage, base));
        stage.child("other user", |stage| other_user(stage, base));
        let mut round = 0;
        move |findings: &mut Findings| {
            round += 1;
            if findings.sabotage() {
                own.damage();
            }
            // Its own, and those of four children that have left the namespace with it.
            own.check(findings, 5);
            own.memory.write(FREE * PAGE, &[round]);
            for place in 1..5 {
                let answered = wait_until(|| own.memory.read(FREE * PAGE + place, 1) == [round]);
                findings.that(answered, format!("answer {place} is not seen"));
            }
        }
    })
}

/// What children have of the first namespace.
#[derive(Clone, Copy)]
struct Base {
    memory: Mapping,
    jobs: RawFd,
    ids: [i32; 4],
}

impl Base {
    /// Leaves for a namespace in which everything has the same identifiers.
    fn leave(&self, tag: u8, with_adjuster: bool) -> Objects {
        unshare(IPC).expect("unshare");
        let made = Objects::make(tag, with_adjuster);
        assert_eq!(self.ids, made.ids(), "identifiers");
        made
    }

    /// Looks at what it has of the first namespace, and answers there.
    fn check(&self, findings: &mut Findings, (place, round): (usize, u8)) {
        self.memory.compare(findings, "the first namespace's segment", 0, 1);
        let asked = wait_until(|| self.memory.read(FREE * PAGE, 1) == [round]);
        findings.that(asked, "what is written to the first namespace's segment is not seen");
        self.memory.write(FREE * PAGE + place, &[round]);
        findings.same("the first namespace's queue takes", &4, &most_messages(self.jobs));
    }
}

fn second(base: Base) -> impl FnMut(&mut Findings) {
    let mut own = base.leave(2, true);
    let mut round = 0;
    move |findings: &mut Findings| {
        round += 1;
        own.check(findings, 2);
        base.check(findings, (1, round));
    }
}

/// One that enters another's namespace, and has both segments and both queues; its mounts show the queues.
fn entered(stage: &Stage, base: Base, second: i32) -> impl FnMut(&mut Findings) + use<> {
    let file = File::open(format!("/proc/{second}/ns/ipc")).expect("open");
    setns(&file, IPC).expect("setns");
    unshare(CloneFlags::CLONE_NEWNS).expect("unshare");
    let queues = queues(stage, "queues of the second");
    let theirs = attach(base.ids[0], PAGES);
    let jobs = victims::ipc::open("/jobs", None).expect("mq_open");
    let mut round = 0;
    move |findings: &mut Findings| {
        round += 1;
        theirs.compare(findings, "the second namespace's segment", 0, 2);
        // A new child of the other's has it for a moment, too.
        let counted = wait_until(|| attached(base.ids[0]) == 2);
        findings.that(counted, "not 2 attachments");
        findings.same("the second namespace's queue takes", &5, &most_messages(jobs));
        base.check(findings, (2, round));
        findings.same("queues that are shown", &vec!["jobs".to_owned()], &names(&queues));
    }
}

fn queues(stage: &Stage, name: &str) -> std::path::PathBuf {
    mounts::change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    mounts::filesystem("mqueue", stage.path(name), MsFlags::empty(), "")
}

fn names(place: &Path) -> Vec<String> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// A process whose thread has a namespace to itself. What a thread does to semaphores is undone when it leaves.
fn threads(base: Base) -> impl FnMut(&mut Findings) {
    detach(base.memory);
    let first = File::open("/proc/self/ns/ipc").expect("open");
    let mut team = Team::default();
    team.spawn("in a namespace", move || {
        let mut own = base.leave(3, false);
        move |findings: &mut Findings| {
            own.check(findings, 1);
            findings.same("values", &own.own_values(false), &own.values());
            let there = File::open("/proc/thread-self/ns/ipc").expect("open");
            setns(&first, IPC).expect("setns");
            setns(&there, IPC).expect("setns");
            findings.same("values after it has left", &own.own_values(true), &own.values());
            own.adjust_again();
        }
    });
    move |findings: &mut Findings| {
        team.check(findings);
        findings.same("the first namespace's queue takes", &4, &most_messages(base.jobs));
    }
}

/// The root of a user namespace, whose namespace it is.
fn user(stage: &Stage, base: Base) -> impl FnMut(&mut Findings) + use<> {
    unshare(CloneFlags::CLONE_NEWUSER).expect("unshare");
    fs::write("/proc/self/setgroups", "deny").expect("deny");
    for map in ["uid_map", "gid_map"] {
        fs::write(Path::new("/proc/self").join(map), "0 0 1").expect("a map");
    }
    let mut own = base.leave(5, true);
    unshare(CloneFlags::CLONE_NEWNS).expect("unshare");
    let queues = queues(stage, "queues of a user");
    let ids = own.ids();
    let memory = own.memory;
    stage.expect("born");
    first(|| stage.act("born", |_| born(base, (memory, ids))));
    stage.wait_for_part("born");
    let mut round = 0;
    move |findings: &mut Findings| {
        round += 1;
        own.check(findings, 2);
        base.check(findings, (3, round));
        findings.same("queues that are shown", &vec!["jobs".to_owned()], &names(&queues));
    }
}

/// The root of one that is another user outside, and does not know the outer root.
fn other_user(stage: &Stage, base: Base) -> impl FnMut(&mut Findings) + use<> {
    new_user(|| CloneFlags::CLONE_NEWUSER);
    become_user(0, 0, &[]);
    let mut own = base.leave(6, true);
    unshare(CloneFlags::CLONE_NEWNS).expect("unshare");
    let queues = queues(stage, "queues of another user");
    // SAFETY: a descriptor and numbers.
    call::checked(unsafe { libc::fchown(own.jobs, 3, 7) }.into()).expect("fchown");
    let mut round = 0;
    move |findings: &mut Findings| {
        round += 1;
        own.check(findings, 1);
        base.check(findings, (4, round));
        findings.same("queues that are shown", &vec!["jobs".to_owned()], &names(&queues));
        let found = fs::metadata(queues.join("jobs")).map(|found| (found.uid(), found.gid(), found.mode() & 0o777));
        findings.same("whose a queue is", &Some((3, 7, 0o600)), &found.ok());
    }
}

/// PID 1 of a PID namespace of the user namespace, with its parent's segment in a namespace of its own.
fn born(base: Base, (theirs, ids): (Mapping, [i32; 4])) -> impl FnMut(&mut Findings) {
    detach(base.memory);
    unshare(IPC).expect("unshare");
    let mut own = Objects::make(7, true);
    assert_eq!(ids, own.ids(), "identifiers");
    move |findings: &mut Findings| {
        own.check(findings, 1);
        theirs.compare(findings, "the parent's segment", 0, 5);
    }
}
