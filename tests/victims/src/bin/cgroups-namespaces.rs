//! Cgroup namespaces that begin at different cgroups, in each hierarchy that is there, with mounts that show what begins there
//! and others that show a part: containers in one another, a process and a thread that have entered one, one of a user
//! namespace, and one whose root hands on controllers and has been left.

use nix::{
    mount::MsFlags,
    sched::{CloneFlags, setns, unshare},
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use victims::{
    Findings, Stage, Team,
    cgroup::{make, own_below, set, text, version_1, version_2},
    mounts, play,
};

const CGROUPS: CloneFlags = CloneFlags::CLONE_NEWCGROUP;

fn main() {
    play(|stage| {
        let own = Own::find();
        let outer = stage.child("outer", |stage| outer(stage, &own));
        stage.child("entered", |_| entered(outer));
        stage.child("user", |stage| user(stage, &own));
        stage.child("threads", |_| threads(outer));
        let mut check = member(None);
        move |findings: &mut Findings| {
            check(findings);
            if findings.sabotage() {
                unshare(CGROUPS).expect("unshare");
                findings.same("its namespace", &inode(&outer.to_string()), &inode("self"));
            }
        }
    })
}

/// The victim's own cgroups, one in each hierarchy where the sandbox has one.
#[derive(Clone)]
struct Own(Vec<PathBuf>);

impl Own {
    fn find() -> Self {
        let sandbox =
            |top: &PathBuf| own_below(top).filter(|own| own != top && own.to_string_lossy().contains("/floe/"));
        Self(version_1().iter().chain(&version_2()).filter_map(sandbox).collect())
    }

    /// Goes into a new cgroup in each.
    fn enter(&self, name: &str) -> Self {
        let place = |own: &PathBuf| {
            let made = make(own.join(name));
            set(&made, "cgroup.procs", std::process::id());
            made
        };
        Self(self.0.iter().map(place).collect())
    }
}

fn inode(who: &str) -> Option<u64> {
    let found = fs::metadata(format!("/proc/{who}/ns/cgroup"));
    found.map(|found| found.ino()).ok()
}

/// What the task's own namespace calls its cgroups, by hierarchy; in those that the sandbox has of its own, where `parts` says
/// how they end.
fn shown() -> BTreeMap<String, String> {
    let lines = fs::read_to_string("/proc/thread-self/cgroup").expect("cgroups");
    let lines = lines.lines().filter_map(|line| {
        let mut words = line.splitn(3, ':').skip(1);
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    });
    lines.collect()
}

/// What a task is told of its cgroups, whether its namespace is its parent's, and mounts below a folder.
fn member(folder: Option<PathBuf>) -> impl FnMut(&mut Findings) + use<> {
    let look = move || {
        // SAFETY: no arguments.
        let parent = unsafe { libc::getppid() }.to_string();
        let mounts = folder.as_deref().map(mounts::below).unwrap_or_default();
        (shown(), inode("thread-self") == inode(&parent), mounts)
    };
    let before = look();
    move |findings: &mut Findings| findings.same("cgroups, whose namespace, mounts", &before, &look())
}

/// Mounts version 2, or the freezer of version 1 where that is not there, as a container does.
fn view(stage: &Stage, name: &str) -> PathBuf {
    mounts::change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    let place = stage.path(name).join("view");
    let (kind, options) = match version_2() {
        Some(_) => ("cgroup2", ""),
        None => ("cgroup", "freezer"),
    };
    mounts::filesystem(kind, place, MsFlags::MS_NOSUID, options)
}

/// Whether a view shows this process at a cgroup.
fn is_at(view: &Path, path: &str) -> bool {
    own_below(view).is_some_and(|found| found == view.join(path))
}

/// A container with another one in it, whose root is left for a cgroup below, so that it may hand on controllers.
fn outer(stage: &Stage, own: &Own) -> impl FnMut(&mut Findings) + use<> {
    let top = own.enter("outer");
    unshare(CGROUPS | CloneFlags::CLONE_NEWNS).expect("unshare");
    let view = view(stage, "outer");
    let part = stage.path("outer").join("part");
    fs::create_dir(&part).expect("a folder");
    let below = top.enter("leaf");
    mounts::bind(&view.join("leaf"), &part, MsFlags::MS_NOSUID);
    let controllers = text(&view, "cgroup.controllers");
    for controller in controllers.split_whitespace() {
        set(&view, "cgroup.subtree_control", format!("+{controller}"));
    }
    let handed = text(&view, "cgroup.subtree_control");
    stage.child("inner", |stage| inner(stage, &below));
    let mut check = member(Some(stage.path("outer")));
    let procs = File::open(view.join("leaf/cgroup.procs")).expect("open");
    move |findings: &mut Findings| {
        check(findings);
        findings.that(is_at(&view, "leaf"), "the view shows something else");
        findings.that(is_at(&part, ""), "the part shows something else");
        findings.same(
            "controllers that are handed on",
            &handed,
            &text(&view, "cgroup.subtree_control"),
        );
        let same = procs.metadata().map(|found| found.ino()).ok();
        let there = fs::metadata(part.join("cgroup.procs")).map(|found| found.ino()).ok();
        findings.same("an open file", &there, &same);
        let new = make(part.join("new"));
        findings.take("remove a new cgroup", fs::remove_dir(&new));
    }
}

fn inner(stage: &Stage, own: &Own) -> impl FnMut(&mut Findings) + use<> {
    own.enter("inner");
    unshare(CGROUPS | CloneFlags::CLONE_NEWNS).expect("unshare");
    let view = view(stage, "inner");
    let mut check = member(Some(stage.path("inner")));
    move |findings: &mut Findings| {
        check(findings);
        findings.that(is_at(&view, ""), "the view shows something else");
    }
}

/// One that is in another's namespace, and not in its cgroup.
fn entered(outer: i32) -> impl FnMut(&mut Findings) {
    let file = File::open(format!("/proc/{outer}/ns/cgroup")).expect("open");
    setns(&file, CGROUPS).expect("setns");
    let mut check = member(None);
    move |findings: &mut Findings| {
        check(findings);
        findings.same("whose namespace", &inode(&outer.to_string()), &inode("self"));
    }
}

/// The root of a user namespace, whose namespace and mount it is.
fn user(stage: &Stage, own: &Own) -> impl FnMut(&mut Findings) + use<> {
    own.enter("user");
    unshare(CloneFlags::CLONE_NEWUSER).expect("unshare");
    fs::write("/proc/self/setgroups", "deny").expect("deny");
    for map in ["uid_map", "gid_map"] {
        fs::write(Path::new("/proc/self").join(map), "0 0 1").expect("a map");
    }
    unshare(CGROUPS | CloneFlags::CLONE_NEWNS).expect("unshare");
    let view = view(stage, "user");
    let mut check = member(Some(stage.path("user")));
    move |findings: &mut Findings| {
        check(findings);
        findings.that(is_at(&view, ""), "the view shows something else");
        let again = unshare(CloneFlags::CLONE_NEWUTS);
        findings.take("its rights", again);
    }
}

/// A process of which one thread has entered a namespace.
fn threads(outer: i32) -> impl FnMut(&mut Findings) {
    let mut team = Team::default();
    team.spawn("thread", move || {
        let file = File::open(format!("/proc/{outer}/ns/cgroup")).expect("open");
        setns(&file, CGROUPS).expect("setns");
        let mut check = member(None);
        move |findings: &mut Findings| {
            check(findings);
            findings.same(
                "a thread's namespace",
                &inode(&outer.to_string()),
                &inode("thread-self"),
            );
        }
    });
    let mut check = member(None);
    move |findings: &mut Findings| {
        team.check(findings);
        check(findings);
    }
}
