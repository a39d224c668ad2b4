//! The root tree of a sandbox, and that it goes with it: all of it while the sandbox runs, and what has changed since when that
//! stands still.
//!
//! ```text
//! look, hash -> told of -> what the target lacks is sent        the tree runs
//! look again -> what is other now is told of -> sent            it stands still
//! ```
//! A file counts as unchanged by its inode, size and times. Those tell nothing of what is written through shared mappings, and
//! little of what was changed just before the first look: of such files the content is looked at again.

use super::{
    Course, MigrateError,
    pump::{talk, wait},
    save::{Sent, refused_here, refused_there},
};
use crate::{
    files::sha256,
    link::{
        Link,
        frame::{DATA, Place},
        message::Message,
    },
    refusal::Refusal,
    tree::{Fault, Found, Kind, MOST, Node, TreePath, no_root_of_its_own, root_of, walk, witness},
};
use floe_sandbox::{Sandbox, tasks};
use floe_sys::{
    Pid,
    descriptor::open_on_same_mount,
    mount::{clone_mount, leave_times_alone},
    procfs::Mapping,
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::{Mode, fstat},
    unistd::{Whence, lseek},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Bytes of nodes that go into one message, about.
const BATCH: usize = 64 << 10;
/// Times of files are no finer than the kernel's ticks.
const FRESH: Duration = Duration::from_millis(50);

/// A root tree on its way.
#[derive(Debug)]
pub struct Tree {
    top: OwnedFd,
    known: BTreeMap<TreePath, Known>,
    /// How many regular files were sent, and their bytes.
    pub sent: (u64, u64),
    /// The same of those that were there already.
    pub there: (u64, u64),
}

/// What the target was told of a file.
#[derive(Debug)]
struct Known {
    node: Node,
    witness: [u64; 7],
    /// Whether its content is looked at again whatever its times say.
    unsettled: bool,
}

impl From<Fault> for MigrateError {
    fn from(fault: Fault) -> Self {
        refused_here(Refusal {
            reason: "its root tree can't be sent (--files rootfs)".to_owned(),
            findings: vec![fault.to_string()],
        })
    }
}

/// Refuses a sandbox that has the host's root directory, before anything is said.
pub fn refuse_without(sandbox: &Sandbox) -> Result<(), MigrateError> {
    let failed = || MigrateError::system("look at the sandbox's root directory");
    let root = |path: &str| std::fs::metadata(path);
    let own = root(&format!("/proc/{}/root", sandbox.pid1()?)).map_err(failed())?;
    let hosts = root("/").map_err(failed())?;
    match (own.dev(), own.ino()) == (hosts.dev(), hosts.ino()) {
        true => Err(refused_here(no_root_of_its_own())),
        false => Ok(()),
    }
}

impl Tree {
    /// Tells the target of the root tree of an image, and sends what that lacks.
    pub fn send(course: &Course<'_>, records: &File, link: &mut Link) -> Result<Self, MigrateError> {
        let path = root_of(records).map_err(refused_here)?;
        let mut tree = Self {
            top: top(&course.request.sandbox, &path)?,
            known: BTreeMap::new(),
            sent: (0, 0),
            there: (0, 0),
        };
        course.control.observer.stage("files");
        let begin = SystemTime::now();
        let mapped = mapped(&course.request.sandbox)?;
        let mut found = tree.look(course, link, true)?;
        tree.hash(course, link, (&mut found, true))?;
        let fresh = begin
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .saturating_sub(FRESH);
        let fresh = (fresh.as_secs(), u64::from(fresh.subsec_nanos()));
        for (path, Found { node, witness, .. }) in &found {
            let [_, inode, _, changed, changed_rest, noted, noted_rest] = *witness;
            let is_fresh = (changed, changed_rest).max((noted, noted_rest)) >= fresh;
            let known = Known {
                node: node.clone(),
                witness: *witness,
                unsettled: is_fresh || mapped.contains(&inode),
            };
            tree.known.insert(path.clone(), known);
        }
        let listed: Vec<Found> = found.into_values().collect();
        tell((&listed, &[]), link)?;
        let lacking = lacking(course, link)?;
        let bytes = |listed: &mut dyn Iterator<Item = &Found>| {
            listed.fold((0, 0), |(count, sum), found| match &found.node.kind {
                Kind::File { size, .. } => (count + 1, sum + size),
                _ => (count, sum),
            })
        };
        let all = bytes(&mut listed.iter());
        let (count, sum) = bytes(&mut lacking.iter().filter_map(|number| listed.get(*number as usize)));
        tree.there = (all.0 - count.min(all.0), all.1 - sum.min(all.1));
        if course.request.dry_run {
            if !lacking.is_empty() {
                link.send(&Message::Skip).map_err(talk(link.peer()))?;
            }
            return Ok(tree);
        }
        tree.send_all(course, link, (&listed, &lacking))?;
        Ok(tree)
    }

    /// The sandbox stands still: tells the target of what is other than it was, and sends what of that it lacks.
    pub fn send_changes(&mut self, course: &Course<'_>, link: &mut Link) -> Result<(), MigrateError> {
        let mapped = mapped(&course.request.sandbox)?;
        for known in self.known.values_mut() {
            known.unsettled |= mapped.contains(&known.witness[1]);
        }
        let mut found = self.look(course, link, false)?;
        self.hash(course, link, (&mut found, false))?;
        let removed: Vec<TreePath> = self
            .known
            .keys()
            .filter(|path| !found.contains_key(path))
            .cloned()
            .collect();
        let is_other = |found: &Found| {
            let known = self.known.get(&found.node.path);
            known.is_none_or(|known| known.unsettled || !known.node.is_same(&found.node))
        };
        let others: BTreeSet<TreePath> = found
            .values()
            .filter(|found| is_other(found))
            .map(|found| found.node.path.clone())
            .collect();
        // A link is made anew with what it is to.
        let is_told = |found: &Found| match &found.node.kind {
            Kind::Link { to } => others.contains(to) || others.contains(&found.node.path),
            _ => others.contains(&found.node.path),
        };
        let listed: Vec<Found> = found.into_values().filter(is_told).collect();
        tell((&listed, &removed), link)?;
        let lacking = lacking(course, link)?;
        self.send_all(course, link, (&listed, &lacking))
    }

    fn look(
        &self,
        course: &Course<'_>,
        link: &mut Link,
        runs: bool,
    ) -> Result<BTreeMap<TreePath, Found>, MigrateError> {
        let mut last = Instant::now();
        let known = |path: &TreePath, witness: &[u64; 7]| {
            let known = self
                .known
                .get(path)
                .filter(|known| known.witness == *witness && !known.unsettled);
            known
                .map(|known| &known.node)
                .filter(|node| !matches!(node.kind, Kind::Link { .. }))
                .cloned()
        };
        walk(self.top.as_fd(), (runs, &known), &mut || course.live(link, &mut last))
    }

    /// Looks at the content of files of which it is not known. Where the sandbox runs, one that goes away was not there.
    fn hash(
        &self,
        course: &Course<'_>,
        link: &mut Link,
        (all, runs): (&mut BTreeMap<TreePath, Found>, bool),
    ) -> Result<(), MigrateError> {
        let mut last = Instant::now();
        let mut gone = BTreeSet::new();
        for found in all.values_mut() {
            let path = found.node.path.clone();
            let Kind::File { size, sha256: sum } = &mut found.node.kind else {
                continue;
            };
            if !sum.is_empty() {
                continue;
            }
            let file = match self.open(&path) {
                Ok(file) => file,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) if runs => {
                    gone.insert(path);
                    continue;
                }
                Err(errno) => return Err(unread(path, &errno.into()).into()),
            };
            // Changed meanwhile, it is looked at again in the end.
            *size = file.metadata().map_err(|error| unread(path.clone(), &error))?.len();
            let read = sha256(&file, || course.live(link, &mut last))?;
            *sum = read.map_err(|error| unread(path, &error))?;
        }
        all.retain(|path, found| match &found.node.kind {
            Kind::Link { to } => !gone.contains(to),
            _ => !gone.contains(path),
        });
        Ok(())
    }

    /// A regular file; ELOOP where something else has taken its place, which might be a device that never ends.
    fn open(&self, path: &TreePath) -> Result<File, Errno> {
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW;
        let file = open_on_same_mount(self.top.as_fd(), path.as_path(), flags, 0)?;
        match fstat(&file)?.st_mode & libc::S_IFMT {
            libc::S_IFREG => Ok(File::from(file)),
            _ => Err(Errno::ELOOP),
        }
    }

    fn send_all(
        &mut self,
        course: &Course<'_>,
        link: &mut Link,
        (listed, lacking): (&[Found], &[u32]),
    ) -> Result<(), MigrateError> {
        let size = |found: &Found| match found.node.kind {
            Kind::File { size, .. } => Some(size),
            _ => None,
        };
        let all = lacking
            .iter()
            .map(|number| Some((*number, listed.get(*number as usize)?)));
        let all: Option<Vec<_>> = all
            .map(|one| one.and_then(|(number, found)| Some((number, found, size(found)?))))
            .collect();
        let all = all.ok_or_else(|| MigrateError::OutOfTurn(link.peer().to_owned()))?;
        let total = all.iter().map(|(_, _, size)| size).sum();
        let mut done = 0;
        for (number, found, size) in all {
            let bytes = self.send_one(course, link, (number, found, size))?;
            self.sent = (self.sent.0 + 1, self.sent.1 + bytes);
            done += bytes;
            course.control.observer.pages(done, total);
        }
        Ok(())
    }

    /// Sends the content of one, but for its holes. One that is other now than it was is told of again in the end.
    fn send_one(
        &mut self,
        course: &Course<'_>,
        link: &mut Link,
        (number, found, size): (u32, &Found, u64),
    ) -> Result<u64, MigrateError> {
        let talk = talk(link.peer());
        let path = &found.node.path;
        let mut last = Instant::now();
        let (mut bytes, mut end) = (0, 0);
        let mut is_as_told = false;
        // It may have gone meanwhile, or be something else.
        let opened = match self.open(path) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => None,
            opened => Some(opened.map_err(|errno| MigrateError::from(unread(path.clone(), &errno.into())))?),
        };
        if let Some(file) = opened {
            let mut piece = vec![0; course.pace().piece(DATA)];
            let failed = |error| MigrateError::from(unread(path.clone(), &error));
            end = file.metadata().map_err(failed)?.len().min(size);
            let mut offset = 0;
            while let Some((begin, behind)) = data(&file, (offset, end)).map_err(failed)? {
                offset = begin;
                while offset < behind {
                    course.live(link, &mut last)?;
                    let most = piece.len().min(usize::try_from(behind - offset).unwrap_or(usize::MAX));
                    let got = match file.read_at(&mut piece[..most], offset) {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        got => got.map_err(failed)?,
                    };
                    if got == 0 {
                        end = offset;
                        break;
                    }
                    let pause = course.pace().place(got);
                    std::thread::sleep(pause);
                    let place = Place { image: number, offset };
                    link.send_piece(place, &piece[..got]).map_err(&talk)?;
                    offset += got as u64;
                    bytes += got as u64;
                }
                offset = behind;
            }
            is_as_told = witness(&file.metadata().map_err(failed)?) == found.witness;
        }
        link.send(&Message::End { bytes: end }).map_err(&talk)?;
        if let Some(known) = self.known.get_mut(path) {
            known.unsettled |= !is_as_told;
        }
        Ok(bytes)
    }
}

fn unread(path: TreePath, error: &io::Error) -> Fault {
    let reason = format!("it can't be read: {error}");
    Fault { path, reason }
}

/// The next bytes of a file that are no hole, from one place on, and before another one.
fn data(file: &File, (from, end): (u64, u64)) -> io::Result<Option<(u64, u64)>> {
    if from >= end {
        return Ok(None);
    }
    let seek = |from: u64, whence| lseek(file, from.cast_signed(), whence).map(i64::cast_unsigned);
    match seek(from, Whence::SeekData) {
        Ok(begin) if begin < end => Ok(Some((begin, seek(begin, Whence::SeekHole)?.min(end)))),
        Ok(_) | Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// A sandbox's root directory, without what is mounted on it.
fn top(sandbox: &Sandbox, path: &Path) -> Result<OwnedFd, MigrateError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let failed = |errno: Errno| MigrateError::system("open the sandbox's root tree")(errno.into());
    let found = open(path, flags, Mode::empty()).map_err(failed)?;
    let own = File::open(format!("/proc/{}/root", sandbox.pid1()?));
    let own = own.map_err(MigrateError::system("open the sandbox's root directory"))?;
    let inode = |file: BorrowedFd<'_>| fstat(file).map(|found| (found.st_dev, found.st_ino)).map_err(failed);
    if inode(found.as_fd())? != inode(own.as_fd())? {
        let text = format!("its root directory is not at {} any more", path.display());
        return Err(refused_here(Refusal::plain(text)));
    }
    match clone_mount(found.as_fd()) {
        Ok(tree) => {
            leave_times_alone(tree.as_fd()).map_err(failed)?;
            Ok(tree)
        }
        // An ordinary user sees no more than what is not hidden by mounts: these are told of.
        Err(Errno::EPERM) => Ok(found),
        Err(errno) => Err(failed(errno)),
    }
}

/// Inode numbers of files that processes of a sandbox have mapped to share them, on whichever filesystem.
fn mapped(sandbox: &Sandbox) -> Result<BTreeSet<u64>, MigrateError> {
    let mut inodes = BTreeSet::new();
    for task in tasks::list(sandbox)? {
        let Some(pid) = task.nspid.first() else { continue };
        match Mapping::read_all_without_flags(Pid::new(*pid)) {
            Ok(all) => inodes.extend(all.iter().filter(|mapping| mapping.shared).map(|mapping| mapping.inode)),
            Err(error) if error.is_gone() => {}
            Err(error) => {
                return Err(MigrateError::system("list what processes have mapped")(
                    io::Error::other(error),
                ));
            }
        }
    }
    Ok(inodes)
}

/// Tells of files and of what is no more, in as many messages as it takes.
fn tell((listed, removed): (&[Found], &[TreePath]), link: &mut Link) -> Result<(), MigrateError> {
    let (mut listed, mut removed) = (listed, removed);
    loop {
        let mut bytes = 0;
        let mut fits = |more: usize| {
            let is_first = bytes == 0;
            bytes += more;
            is_first || bytes < BATCH
        };
        let weight = |found: &Found| 256 + found.node.bytes();
        let gone = removed.iter().take_while(|path| fits(64 + path.bytes().len())).count();
        let some = listed.iter().take_while(|found| fits(weight(found))).count();
        let ((gone, later_gone), (some, later)) = (removed.split_at(gone), listed.split_at(some));
        (removed, listed) = (later_gone, later);
        let last = removed.is_empty() && listed.is_empty();
        let message = Message::Tree {
            nodes: some.iter().map(|found| found.node.clone()).collect(),
            stored: some.iter().map(|found| found.stored).sum(),
            removed: gone.to_vec(),
            last,
        };
        link.send(&message).map_err(talk(link.peer()))?;
        if last {
            return Ok(());
        }
    }
}

/// What of that the target lacks, by number.
fn lacking(course: &Course<'_>, link: &mut Link) -> Result<Vec<u32>, MigrateError> {
    let mut all = Vec::new();
    loop {
        match wait(course, (link, None), &mut Sent::default())? {
            Some(Message::Lacking { files, last }) => {
                all.extend(files);
                if all.len() > MOST || !all.is_sorted_by(|one, next| one < next) {
                    return Err(MigrateError::OutOfTurn(link.peer().to_owned()));
                }
                if last {
                    return Ok(all);
                }
            }
            Some(Message::Refused { reason, findings }) => {
                return Err(refused_there(link.peer(), &reason, &findings));
            }
            Some(_) => return Err(MigrateError::OutOfTurn(link.peer().to_owned())),
            None => {}
        }
    }
}
