//! Mounts that show what is elsewhere: folders, a file, parts of a tmpfs, all below a folder; what they allow; how mounts on
//! them come to others; what the host has mounted and the program has not, or allows less of.

use nix::mount::MsFlags;
use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use victims::{
    Findings, Seen, Stage,
    descriptor::open,
    mounts::{below, bind, change, filesystem, unmount},
    play,
};

fn main() {
    play(|stage| {
        let folder = |name: &str| {
            let path = stage.path(name);
            fs::create_dir_all(&path).expect("a folder");
            path
        };
        let source = folder("source/inner");
        fs::write(source.join("file"), b"content").expect("write");
        let shown = folder("shown");
        bind(&stage.path("source"), &shown, MsFlags::empty());
        let flags =
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME;
        change(&shown, flags);
        let single = stage.path("single");
        File::create(&single).expect("create");
        bind(&source.join("file"), &single, MsFlags::empty());
        let memory = filesystem("tmpfs", stage.path("memory"), MsFlags::empty(), "size=1m");
        fs::create_dir(memory.join("part")).expect("a folder");
        fs::write(memory.join("part/file"), b"part").expect("write");
        filesystem("tmpfs", memory.join("on it"), MsFlags::MS_NOEXEC, "size=1m");
        let part = folder("part of it");
        bind(&memory.join("part"), &part, MsFlags::empty());
        let all = folder("all");
        bind(&memory, &all, MsFlags::MS_REC);
        let groups = Groups::make(stage);
        // Every host has these.
        change(
            Path::new("/dev"),
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOEXEC,
        );
        unmount(Path::new("/sys"));
        let file = open(&shown.join("inner/file"), libc::O_RDONLY);
        let seen = Seen::of(file);
        let tops = [stage.dir().to_owned(), "/dev".into(), "/sys".into()];
        let mounts = tops.clone().map(|top| below(&top));
        move |findings: &mut Findings| {
            if findings.sabotage() {
                unmount(&single);
            }
            findings.same("mounts", &mounts, &tops.clone().map(|top| below(&top)));
            seen.compare(findings, "an open file", file);
            let refused = File::create(shown.join("new")).map_err(|error| error.raw_os_error());
            findings.that(
                refused.is_err_and(|error| error == Some(libc::EROFS)),
                "it can be written",
            );
            findings.same(
                "a single file",
                &b"content".to_vec(),
                &fs::read(&single).unwrap_or_default(),
            );
            findings.same(
                "a part",
                &b"part".to_vec(),
                &fs::read(part.join("file")).unwrap_or_default(),
            );
            let inode = |path: PathBuf| fs::metadata(path).map_or((0, 0), |about| (about.dev(), about.ino()));
            findings.same("what is bound", &inode(memory.join("part")), &inode(part.clone()));
            findings.same(
                "what is bound with all",
                &inode(memory.join("on it")),
                &inode(all.join("on it")),
            );
            findings.that(
                fs::read_dir("/sys").is_ok_and(|mut listed| listed.next().is_none()),
                "/sys is there",
            );
            groups.check(findings);
        }
    })
}

/// Mounts that share what is mounted on them, one that only gets it, one that hands on what it gets, and one that may not
/// be bound.
struct Groups {
    places: [PathBuf; 4],
    alone: PathBuf,
}

impl Groups {
    fn make(stage: &Stage) -> Self {
        let names = ["shared", "peer", "slave", "both"];
        let places = names.map(|name| stage.path(name));
        filesystem("tmpfs", places[0].clone(), MsFlags::empty(), "size=1m");
        fs::create_dir(places[0].join("place")).expect("a folder");
        change(&places[0], MsFlags::MS_SHARED);
        for place in &places[1..] {
            fs::create_dir(place).expect("a folder");
            bind(&places[0], place, MsFlags::empty());
        }
        change(&places[2], MsFlags::MS_SLAVE);
        change(&places[3], MsFlags::MS_SLAVE);
        change(&places[3], MsFlags::MS_SHARED);
        let alone = filesystem("tmpfs", stage.path("alone"), MsFlags::empty(), "size=1m");
        change(&alone, MsFlags::MS_UNBINDABLE);
        Self { places, alone }
    }

    fn check(&self, findings: &mut Findings) {
        let count = |place: &Path| below(place).len();
        for (at, others) in [(0, [2, 2, 2, 2]), (2, [1, 1, 2, 1]), (3, [1, 1, 1, 2])] {
            let place = self.places[at].join("place");
            filesystem("tmpfs", place.clone(), MsFlags::empty(), "size=1m");
            let found = [0, 1, 2, 3].map(|at| count(&self.places[at]));
            findings.same(format!("mounts after one on number {at}"), &others, &found);
            unmount(&place);
        }
        let bound = nix::mount::mount(
            Some(&self.alone),
            &self.places[0].join("place"),
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        );
        findings.that(bound.is_err(), "it can be bound");
    }
}
