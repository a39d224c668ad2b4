//! Cgroups of version 2 below the victim's own: settings, owners, a frozen one, threads each in its own, open files of them.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command},
};
use victims::{
    Findings, Team,
    cgroup::{make, members, numbers, own_below, set, text, version_2},
    play, wait_until,
};

fn main() {
    play(|_| {
        let top = version_2().expect("version 2");
        let own = own_below(&top).expect("a cgroup that has this process");
        let calm = make(own.join("calm"));
        let frozen = make(calm.join("frozen caf\u{e9}"));
        let work = make(own.join("work"));
        set(&work, "cgroup.procs", std::process::id());
        let (sleeper, still) = (sleeper(&calm), sleeper(&frozen));
        set(&frozen, "cgroup.freeze", 1);
        wait_until(|| text(&frozen, "cgroup.events").contains("frozen 1"));
        set(&calm, "cgroup.max.depth", 5);
        set(&calm, "cgroup.max.descendants", 7);
        chown(&calm, Some(1000), Some(100)).expect("give it away");
        fs::set_permissions(&calm, fs::Permissions::from_mode(0o750)).expect("permissions");
        chown(calm.join("cgroup.procs"), Some(1000), Some(1000)).expect("give it away");
        fs::set_permissions(calm.join("cgroup.procs"), fs::Permissions::from_mode(0o664)).expect("permissions");
        let mut team = Team::default();
        for name in ["one", "two"] {
            let place = make(work.join(name));
            set(&place, "cgroup.type", "threaded");
            team.spawn(name, move || member(&place));
        }
        let procs = File::open(calm.join("cgroup.procs")).expect("open");
        let depth = File::options()
            .write(true)
            .open(calm.join("cgroup.max.depth"))
            .expect("open");
        let folder = File::open(&frozen).expect("open");
        let mut children = [sleeper, still];
        let before = look(&own, &children);
        move |findings: &mut Findings| {
            let place = own_below(&top).expect("a cgroup that has this process");
            findings.that(place.ends_with("work"), format!("it is in {}", place.display()));
            let own = place.parent().expect("a cgroup above");
            if findings.sabotage() {
                set(&own.join("calm"), "cgroup.max.depth", 6);
            }
            findings.same("its cgroups", &before, &look(own, &children));
            team.check(findings);
            for child in &mut children {
                let ended = findings.take("look at a child", child.try_wait());
                findings.same("its end", &Some(None), &ended);
            }
            let mut bytes = [0; 64];
            let length = findings
                .take("read an open file", procs.read_at(&mut bytes, 0))
                .unwrap_or(0);
            let said = String::from_utf8_lossy(&bytes[..length]).into_owned();
            findings.same(
                "what an open file says",
                &vec![children[0].id() as i32],
                &numbers(&said),
            );
            findings.take("write to an open file", depth.write_all_at(b"5", 0));
            let there = findings
                .take("look at an open directory", folder.metadata())
                .map(|found| found.ino());
            let wanted = fs::metadata(own.join("calm/frozen caf\u{e9}"))
                .map(|found| found.ino())
                .ok();
            findings.same("an open directory", &wanted, &there);
        }
    })
}

fn sleeper(place: &Path) -> Child {
    let child = Command::new("sleep").arg("1000").spawn().expect("start a child");
    set(place, "cgroup.procs", child.id());
    child
}

/// A thread in a cgroup of its own.
fn member(place: &Path) -> impl FnMut(&mut Findings) + use<> {
    // SAFETY: takes nothing and can't fail.
    let tid = unsafe { libc::gettid() };
    set(place, "cgroup.threads", tid);
    let name = place.file_name().expect("a name").to_owned();
    move |findings: &mut Findings| {
        let own = own_below(&version_2().expect("version 2")).expect("a cgroup that has this process");
        let there = numbers(&text(&own.join(&name), "cgroup.threads"));
        findings.same("threads there", &vec![tid], &there);
    }
}

/// All that is to stay.
fn look(own: &Path, children: &[Child; 2]) -> Vec<String> {
    let calm = own.join("calm");
    let frozen = calm.join("frozen caf\u{e9}");
    let work = own.join("work");
    let mut found = vec![
        format!("{:?}", members(&calm) == [children[0].id() as i32]),
        format!("{:?}", members(&frozen) == [children[1].id() as i32]),
        text(&frozen, "cgroup.freeze"),
        text(&frozen, "cgroup.events"),
        text(&calm, "cgroup.freeze"),
        text(&calm, "cgroup.max.depth"),
        text(&calm, "cgroup.max.descendants"),
        text(&work, "cgroup.type"),
        text(&work.join("one"), "cgroup.type"),
        text(&work.join("two"), "cgroup.type"),
    ];
    for place in [
        PathBuf::new(),
        "calm".into(),
        "calm/cgroup.procs".into(),
        "calm/frozen caf\u{e9}".into(),
        "work".into(),
    ] {
        let metadata = fs::metadata(own.join(&place)).expect("metadata");
        let (uid, gid, mode) = (metadata.uid(), metadata.gid(), metadata.mode());
        found.push(format!("{}: {uid} {gid} {mode:o}", place.display()));
    }
    found
}
