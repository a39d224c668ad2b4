//! What is mounted when a user namespace gets a mount namespace of its own is locked in there: nobody may unmount it, and see
//! what it hides. What is mounted there afterwards is not. So it is one user namespace further, and where the root is another
//! one than it was.

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, umount2},
    sched::{CloneFlags, unshare},
    unistd::chdir,
};
use std::{
    fs,
    path::{Path, PathBuf},
};
use victims::{
    Findings, Stage,
    mounts::{below, bind, change, filesystem},
    play,
    users::become_root,
};

const ALL_PRIVATE: MsFlags = MsFlags::MS_REC.union(MsFlags::MS_PRIVATE);

fn main() {
    play(|stage| {
        let hidden = stage.path("hidden");
        fs::create_dir_all(&hidden).expect("a folder");
        fs::write(hidden.join("secret"), b"secret").expect("write");
        let over = filesystem("tmpfs", hidden, MsFlags::empty(), "size=1m");
        fs::write(over.join("plain"), b"plain").expect("write");
        // On that, at its own place, and what shows a part of it.
        let deep = filesystem("tmpfs", over.join("deep"), MsFlags::MS_NODEV, "size=1m");
        let twice = filesystem("tmpfs", stage.path("twice"), MsFlags::empty(), "size=1m");
        filesystem("tmpfs", twice.clone(), MsFlags::MS_NOSUID, "size=1m");
        fs::create_dir_all(over.join("part")).expect("a folder");
        let part = stage.path("part");
        fs::create_dir_all(&part).expect("a folder");
        bind(&over.join("part"), &part, MsFlags::empty());
        let locked = vec![over, deep, twice, part];
        let before = locked.clone();
        stage.child("inside", move |stage| inside(stage, before, 2));
        let file = locked[0].join("plain");
        move |findings: &mut Findings| {
            findings.same("the file", &b"plain".to_vec(), &fs::read(&file).unwrap_or_default());
        }
    });
}

/// In a user namespace of its own, and in others below.
fn inside(stage: &Stage, mut locked: Vec<PathBuf>, depth: usize) -> impl FnMut(&mut Findings) + use<> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).expect("unshare");
    become_root();
    change(Path::new("/"), ALL_PRIVATE);
    let own = filesystem("tmpfs", stage.path(&format!("own{depth}")), MsFlags::empty(), "size=1m");
    fs::write(own.join("file"), format!("own {depth}")).expect("write");
    let loose = filesystem("tmpfs", own.join("loose"), MsFlags::empty(), "size=1m");
    let known = locked.clone();
    locked.extend([own.clone(), loose.clone()]);
    if depth > 1 {
        stage.child(&format!("inside {depth}"), move |stage| {
            inside(stage, locked, depth - 1)
        });
    }
    let mounted = below(Path::new("/"));
    chdir("/").expect("chdir");
    move |findings| {
        if findings.sabotage() {
            findings.take("a mount less", umount2(&own, MntFlags::MNT_DETACH));
        }
        findings.same("what is mounted", &mounted, &below(Path::new("/")));
        for path in &known {
            let answer = umount2(path, MntFlags::MNT_DETACH);
            findings.same(format!("unmounting {}", path.display()), &Err(Errno::EINVAL), &answer);
        }
        let text = fs::read_to_string(own.join("file")).unwrap_or_default();
        findings.same("the file", &format!("own {depth}"), &text);
        findings.take("unmounting what is its own", umount2(&loose, MntFlags::empty()));
        filesystem("tmpfs", loose.clone(), MsFlags::empty(), "size=1m");
    }
}
