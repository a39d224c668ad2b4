//! Which files a sandbox uses, and that they go with it: programs and libraries that are mapped, and files that are open for
//! reading, with the directories on the way to them and those that processes are in. What the tree writes to is not among them: it
//! may change until the tree stops.

use super::{
    Course, MigrateError,
    pump::{ALIVE, talk, wait},
    save::{Sent, refused_here, refused_there},
};
use crate::{
    files::{Content, Entry, FilePath, MOST, sha256},
    link::{
        Link,
        frame::{DATA, FrameError},
        message::Message,
    },
    refusal::Refusal,
};
use floe_image::{
    Image, ImageFiles,
    record::{MountPoint, MountSource},
};
use floe_resources::file::on_disk;
use floe_sys::descriptor::open_in_root;
use nix::sys::statfs::fstatfs;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, Metadata},
    io,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt},
    },
    time::Instant,
};

/// Filesystems whose files are views of the kernel's state (linux/magic.h): proc, sysfs, configfs, securityfs, debugfs, tracefs,
/// both of cgroups.
const VIEWS: [i64; 8] = [
    0x9fa0,
    0x6265_6572,
    0x6265_6570,
    0x7363_6673,
    0x6462_6720,
    0x7472_6163,
    0x6367_7270,
    0x0027_e0eb,
];
/// Bytes of paths that go into one message.
const BATCH: usize = 64 << 10;

/// Files that were offered to the target.
#[derive(Debug, Default)]
pub struct Offered {
    /// Each regular one, and by which it is seen whether it changed.
    known: Vec<(FilePath, Witness)>,
    /// How many were sent, and their bytes.
    pub sent: (u64, u64),
    /// The same of those that were there already.
    pub there: (u64, u64),
}

/// Device, inode, bytes, times of change of content and inode.
#[derive(Debug, PartialEq, Eq)]
struct Witness([u64; 2], u64, [i64; 4]);

impl Witness {
    fn of(found: &Metadata) -> Self {
        let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()];
        Self([found.dev(), found.ino()], found.size(), times)
    }
}

/// Offers what the tree of an image uses to the target, and sends what that lacks.
pub fn send(course: &Course<'_>, records: &File, link: &mut Link) -> Result<Offered, MigrateError> {
    let failed = MigrateError::system("look at the files that the sandbox uses");
    let root = File::open(format!("/proc/{}/root", course.request.sandbox.pid1()?)).map_err(failed)?;
    let records = records.try_clone().map_err(MigrateError::system("read the records"))?;
    let (files, directories) = used(records).map_err(refused_here)?;
    let mut offered = Offered::default();
    let mut entries = BTreeMap::new();
    let mut last = Instant::now();
    for path in files {
        let Some(file) = open(&root, &path, libc::O_RDONLY | libc::O_NONBLOCK) else {
            continue;
        };
        let found = file.metadata().map_err(MigrateError::system("look at a file"))?;
        if !found.is_file() || fstatfs(&file).is_ok_and(|on| VIEWS.contains(&on.filesystem_type().0)) {
            continue;
        }
        let sum = sha256(&file, || course.live(link, &mut last))?.map_err(unread)?;
        let content = Some(Content {
            size: found.size(),
            sha256: sum,
        });
        for above in path.ancestors() {
            add_directory(&root, above, &mut entries);
        }
        offered.there = (offered.there.0 + 1, offered.there.1 + found.size());
        entries.insert(path.clone(), (entry(path.clone(), content, &found), Some(file)));
        offered.known.push((path, Witness::of(&found)));
    }
    for path in directories {
        for path in path.ancestors().chain([path.clone()]) {
            add_directory(&root, path, &mut entries);
        }
    }
    if entries.len() > MOST {
        let text = format!(
            "it uses {} files, of which {MOST} at most go with it (--files)",
            entries.len()
        );
        return Err(refused_here(Refusal::plain(text)));
    }
    let entries: Vec<_> = entries.into_values().collect();
    tell(&entries, link)?;
    for number in wanted(course, link)? {
        let Some((entry, Some(file))) = entries.get(number as usize) else {
            return Err(MigrateError::OutOfTurn(link.peer().to_owned()));
        };
        let bytes = send_one(course, (entry, file), link)?;
        offered.sent = (offered.sent.0 + 1, offered.sent.1 + bytes);
        offered.there = (offered.there.0.saturating_sub(1), offered.there.1.saturating_sub(bytes));
    }
    Ok(offered)
}

impl Offered {
    /// Finds that all are as they were when they were sent.
    pub fn are_unchanged(&self, course: &Course<'_>) -> Result<(), MigrateError> {
        if self.known.is_empty() {
            return Ok(());
        }
        let failed = MigrateError::system("look at the files that the sandbox uses");
        let root = File::open(format!("/proc/{}/root", course.request.sandbox.pid1()?)).map_err(failed)?;
        let changed = self.known.iter().filter(|(path, witness)| {
            let found = open(&root, path, libc::O_PATH).and_then(|file| file.metadata().ok());
            found.is_none_or(|found| Witness::of(&found) != *witness)
        });
        let findings: Vec<String> = changed
            .map(|(path, _)| format!("file {path}: it was changed since it was sent; try again"))
            .collect();
        match findings.len() {
            0 => Ok(()),
            count => Err(refused_here(Refusal {
                reason: format!("{count} of its files changed while they went over"),
                findings,
            })),
        }
    }
}

impl Course<'_> {
    /// Lets the target hear now and then that this side lives, and hears whether it refuses.
    pub(super) fn live(&self, link: &mut Link, last: &mut Instant) -> Result<(), MigrateError> {
        self.look_out(link)?;
        Self::listen(link)?;
        if last.elapsed() > ALIVE {
            link.send_alive().map_err(talk(link.peer()))?;
            *last = Instant::now();
        }
        Ok(())
    }
}

fn unread(source: io::Error) -> MigrateError {
    MigrateError::system("read a file that the sandbox uses")(source)
}

fn open(root: &File, path: &FilePath, flags: i32) -> Option<File> {
    let opened = open_in_root(root.as_fd(), path.from_root(), flags | libc::O_NOFOLLOW, 0);
    opened.map(File::from).ok()
}

fn entry(path: FilePath, content: Option<Content>, found: &Metadata) -> Entry {
    let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    Entry {
        path,
        content,
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        times: [
            nanoseconds(found.atime(), found.atime_nsec()),
            nanoseconds(found.mtime(), found.mtime_nsec()),
        ],
    }
}

type Entries = BTreeMap<FilePath, (Entry, Option<File>)>;

fn add_directory(root: &File, path: FilePath, entries: &mut Entries) {
    if entries.contains_key(&path) {
        return;
    }
    let found = open(root, &path, libc::O_PATH).and_then(|file| file.metadata().ok());
    if let Some(found) = found.filter(Metadata::is_dir) {
        entries.insert(path.clone(), (entry(path, None, &found), None));
    }
}

/// Regular files and directories that a tree uses, of those that its host has.
fn used(records: File) -> Result<(BTreeSet<FilePath>, BTreeSet<FilePath>), Refusal> {
    let image = Image::open(ImageFiles::from(records)).map_err(|error| Refusal::of(&error))?;
    let mounts = image
        .mount_namespaces()
        .first()
        .map_or(&[][..], |space| &space.mounts[..]);
    if mounts.first().is_some_and(|root| root.source != MountSource::Inherited) {
        let text = "it has a root directory of its own (--rootfs), which is sent whole (--files rootfs)";
        return Err(Refusal::plain(text));
    }
    let is_hosts = |path: &FilePath| {
        let is_below = |MountPoint(point): &MountPoint| {
            let rest = path.bytes().strip_prefix(&point[..]);
            point == b"/" || rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        let on = mounts
            .iter()
            .filter(|mount| is_below(&mount.point))
            .max_by_key(|mount| mount.point.0.len());
        on.is_none_or(|mount| mount.source == MountSource::Inherited)
    };
    let straight = |path: &[u8]| FilePath::try_from(path.to_vec()).ok();
    let (mut read, mut written) = (BTreeSet::new(), BTreeSet::new());
    let mapped = image
        .mapped_files()
        .iter()
        .filter(|file| file.ghost.is_none() && file.mount_namespace == 0);
    for file in mapped {
        let set = if file.writable { &mut written } else { &mut read };
        set.extend(straight(&file.path));
    }
    for record in image.open_files().iter().filter(|record| record.mount_namespace == 0) {
        let Some(file) = on_disk(record).map_err(|error| Refusal::of(&error))? else {
            continue;
        };
        let reads = record.flags as i32 & libc::O_ACCMODE == libc::O_RDONLY;
        let set = if reads { &mut read } else { &mut written };
        set.extend(straight(&file.path));
    }
    let places = image
        .processes()
        .iter()
        .flat_map(|process| [&process.cwd, &process.root]);
    let directories = places
        .filter(|place| place.ghost.is_none() && place.mount_namespace == 0)
        .filter_map(|place| straight(&place.path))
        .filter(is_hosts)
        .collect();
    let read = read.into_iter().filter(|path| !written.contains(path)).filter(is_hosts);
    Ok((read.collect(), directories))
}

fn tell(entries: &[(Entry, Option<File>)], link: &mut Link) -> Result<(), MigrateError> {
    let mut rest = entries;
    loop {
        let mut bytes = 0;
        let fits = |(entry, _): &&(Entry, Option<File>)| {
            bytes += entry.path.bytes().len() + 256;
            bytes < BATCH
        };
        let count = rest.iter().take_while(fits).count();
        let (batch, behind) = rest.split_at(count);
        let message = Message::Files {
            entries: batch.iter().map(|(entry, _)| entry.clone()).collect(),
            last: behind.is_empty(),
        };
        link.send(&message).map_err(talk(link.peer()))?;
        if behind.is_empty() {
            return Ok(());
        }
        rest = behind;
    }
}

fn wanted(course: &Course<'_>, link: &mut Link) -> Result<Vec<u32>, MigrateError> {
    loop {
        match wait(course, (link, None), &mut Sent::default())? {
            Some(Message::Want { files }) => return Ok(files),
            Some(Message::Refused { reason, findings }) => {
                return Err(refused_there(link.peer(), &reason, &findings));
            }
            Some(_) => return Err(MigrateError::OutOfTurn(link.peer().to_owned())),
            None => {}
        }
    }
}

/// Sends one of which it is known how long it is.
fn send_one(course: &Course<'_>, (entry, file): (&Entry, &File), link: &mut Link) -> Result<u64, MigrateError> {
    let talk = talk(link.peer());
    let size = entry.content.as_ref().map_or(0, |content| content.size);
    let mut piece = vec![0; course.pace().piece(DATA)];
    let mut last = Instant::now();
    let mut bytes = 0;
    while bytes < size {
        course.live(link, &mut last)?;
        let most = piece.len().min(usize::try_from(size - bytes).unwrap_or(usize::MAX));
        let got = file.read_at(&mut piece[..most], bytes).map_err(unread)?;
        if got == 0 {
            break;
        }
        let pause = course.pace().place(got);
        std::thread::sleep(pause);
        link.send_data(&piece[..got]).map_err(&talk)?;
        bytes += got as u64;
    }
    // One that is shorter now is not what was offered, which the target finds.
    link.send(&Message::End { bytes })
        .map_err(|error: FrameError| talk(error))?;
    Ok(bytes)
}
