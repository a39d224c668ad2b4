//! Where a tree that comes is put, and how it gets its name there: beside its place it is made, and it changes places with what
//! is there when the decision has fallen.
//!
//! ```text
//! .floe-ID  the new tree        .floe-ID  the old tree
//! NAME      the old tree   ->   NAME      the new tree   ->   NAME
//!           built, held                   told: runs          the old tree is removed
//! ```
//! All of that is one file, `ID.tree` beside the permits, made before the tree: whoever hears of the decision, how often ever, finds
//! by it what is left to be done, and locks it as long as that takes. Before the sandbox is let run the decision is noted there: from
//! then on nobody removes the new tree. Only what is known to be what it was is exchanged or removed.

use super::stage::remove_all;
use crate::{
    link::message::Id,
    record::{self, Permit, Process},
    refusal::Refusal,
    tree::Bytes,
};
use floe_sandbox::{Sandbox, StateDir};
use floe_sys::{
    descriptor::open_beneath,
    mount,
    procfs::{self, mount_points},
};
use nix::{
    errno::Errno,
    fcntl::{RenameFlags, readlink, renameat2},
    sys::{
        stat::{FileStat, Mode, fstat, fstatat, mkdirat},
        statvfs::fstatvfs,
    },
    unistd::{UnlinkatFlags, geteuid, syncfs, unlinkat},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

/// How long a process that was killed may take to end.
const MOMENT: Duration = Duration::from_secs(10);

/// Where a tree is to be.
#[derive(Debug)]
pub struct Place {
    /// The directory that it is in.
    above: OwnedFd,
    name: OsString,
    /// The tree that is there.
    pub old: Option<OwnedFd>,
}

impl Place {
    /// One below the directories in which there may be trees.
    ///
    /// # Errors
    /// Why there may be none.
    pub fn find(path: &Path, roots: &[PathBuf]) -> Result<Self, String> {
        let below = roots
            .iter()
            .find_map(|root| Some((root, path.strip_prefix(root).ok()?)));
        let Some((root, rest)) = below.filter(|(_, rest)| rest.file_name().is_some()) else {
            let text = "it lies below no directory that floe receive may put trees into (--roots; --mount /=PATH gives another place)";
            return Err(text.to_owned());
        };
        let mut above = fs::canonicalize(root)
            .and_then(File::open)
            .map(OwnedFd::from)
            .map_err(|error| format!("{} can't be opened here: {error}", root.display()))?;
        refuse_of_others(&above, root)?;
        refuse_root_of_process(&above, root)?;
        let mut parts: Vec<&OsStr> = Vec::new();
        for part in rest.components() {
            match part {
                Component::Normal(part) => parts.push(part),
                _ => return Err("its path does not lead straight to it".to_owned()),
            }
        }
        let name = parts.pop().map(OsStr::to_owned).ok_or("its path has no name")?;
        let mut shown = root.clone();
        for part in parts {
            shown.push(part);
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
            above = open_beneath(above.as_fd(), Path::new(part), flags, 0)
                .map_err(|errno| format!("{} can't be opened here: {errno}", shown.display()))?;
            refuse_of_others(&above, &shown)?;
            refuse_root_of_process(&above, &shown)?;
        }
        let old = match open_beneath(above.as_fd(), Path::new(&name), libc::O_PATH | libc::O_NOFOLLOW, 0) {
            Ok(old) => Some(old),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(format!("it can't be looked at here: {errno}")),
        };
        let place = Self { above, name, old };
        match place.hinders(&shown) {
            Ok(None) => Ok(place),
            Ok(Some(reason)) => Err(reason),
            Err(error) => Err(format!("it can't be looked at here: {error}")),
        }
    }

    /// Why what is there can't go.
    fn hinders(&self, above: &Path) -> io::Result<Option<String>> {
        let Some(old) = &self.old else { return Ok(None) };
        if fstat(old)?.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return Ok(Some("something else than a directory is there".to_owned()));
        }
        in_use(old, &above.join(&self.name))
    }

    /// Bytes and files for which there is room; `None` where the filesystem does not say.
    pub fn room(&self) -> io::Result<(u64, Option<u64>)> {
        let found = fstatvfs(&self.above)?;
        let files = (found.files() > 0).then(|| found.files_available());
        Ok((found.blocks_available().saturating_mul(found.fragment_size()), files))
    }

    fn path(&self) -> io::Result<PathBuf> {
        let link = format!("/proc/self/fd/{}", self.above.as_raw_fd());
        Ok(PathBuf::from(readlink(link.as_str())?))
    }
}

/// By whom a directory is used.
fn in_use(directory: &OwnedFd, path: &Path) -> io::Result<Option<String>> {
    if mount::is_root(directory.as_fd())? {
        return Ok(Some("something is mounted there".to_owned()));
    }
    let mounts = mount_points("/proc/self").map_err(io::Error::other)?;
    let on_it = mounts
        .iter()
        .find(|mount| Path::new(OsStr::from_bytes(&mount.path)).starts_with(path));
    if let Some(on_it) = on_it {
        let point = String::from_utf8_lossy(&on_it.path);
        return Ok(Some(format!("something is mounted in it, at {point}")));
    }
    let user = user_of_root(inode(&fstat(directory)?))?;
    Ok(user.map(|pid| format!("process {pid} has it as its root directory")))
}

/// A process that has a directory as its root.
fn user_of_root(directory: Inode) -> io::Result<Option<i32>> {
    for pid in procfs::processes().map_err(io::Error::other)? {
        // One that has ended has none any more.
        let Ok(root) = fs::metadata(format!("/proc/{pid}/root")) else {
            continue;
        };
        if [root.dev(), root.ino()] == directory {
            return Ok(Some(pid.raw()));
        }
    }
    Ok(None)
}

/// Whose root a directory is, may put another one in the place of what is in it. That of floe is its own.
fn refuse_root_of_process(directory: &OwnedFd, path: &Path) -> Result<(), String> {
    let look = || -> io::Result<Option<i32>> {
        let (own, found) = (fs::metadata("/")?, inode(&fstat(directory)?));
        match [own.dev(), own.ino()] == found {
            true => Ok(None),
            false => user_of_root(found),
        }
    };
    match look() {
        Ok(None) => Ok(()),
        Ok(Some(pid)) => Err(format!(
            "{} is the root directory of process {pid} here",
            path.display()
        )),
        Err(error) => Err(format!("{} can't be looked at here: {error}", path.display())),
    }
}

/// Device and inode.
type Inode = [u64; 2];

fn inode(found: &FileStat) -> Inode {
    [found.st_dev, found.st_ino]
}

/// Whoever else may write into a directory could put another one in the place of what is in it.
fn refuse_of_others(directory: &OwnedFd, path: &Path) -> Result<(), String> {
    let found = fstat(directory).map_err(|errno| format!("{} can't be looked at here: {errno}", path.display()))?;
    let is_own = found.st_uid == 0 || found.st_uid == geteuid().as_raw();
    let others = found.st_mode & (libc::S_IWGRP | libc::S_IWOTH) != 0;
    match is_own && !others {
        true => Ok(()),
        false => Err(format!(
            "{} is a directory into which others may write here",
            path.display()
        )),
    }
}

/// What is written down of a tree that comes: a line each, the first one of these.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Journal {
    above: Bytes,
    name: Bytes,
    temporary: Bytes,
    /// What was at its place.
    old: Option<Inode>,
    /// Who makes it.
    maker: Process,
    /// The new one, once it is there.
    #[serde(skip)]
    tree: Option<Inode>,
    /// Whether it was decided that its sandbox runs.
    #[serde(skip)]
    is_committed: bool,
}

fn journal_of(state_dir: &StateDir, id: &Id) -> PathBuf {
    record::file(state_dir, id, "tree")
}

/// A journal, of which nobody else does anything meanwhile.
struct Locked {
    file: File,
    /// `None` where nothing was made yet.
    journal: Option<Journal>,
}

impl Locked {
    /// `None` where there is none.
    fn take(path: &Path) -> Result<Option<Self>, Refusal> {
        let failed = |error: io::Error| Refusal::plain(format!("read {}: {error}", path.display()));
        let file = match File::options().read(true).append(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        file.lock().map_err(failed)?;
        if file.metadata().map_err(failed)?.nlink() == 0 {
            return Ok(None);
        }
        let journal = Journal::read(&file).map_err(failed)?;
        Ok(Some(Self { file, journal }))
    }

    fn note(&mut self, line: &impl Serialize) -> io::Result<()> {
        self.file
            .write_all(format!("{}\n", serde_json::to_string(line)?).as_bytes())?;
        self.file.sync_data()
    }
}

impl Journal {
    fn read(mut file: &File) -> io::Result<Option<Self>> {
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // A line that was cut short tells of what was not done yet.
        let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let Some(first) = lines.next() else { return Ok(None) };
        let mut journal: Self = serde_json::from_str(first)?;
        journal.tree = lines.next().map(serde_json::from_str).transpose()?;
        journal.is_committed = lines.next().map(serde_json::from_str).transpose()?.unwrap_or(false);
        Ok(Some(journal))
    }

    /// The directory, and what has the names in it.
    fn look(&self) -> io::Result<Standing> {
        let above = OwnedFd::from(File::open(self.above.as_os_str())?);
        let find = |name: &Bytes| match fstatat(&above, name.as_os_str(), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(inode(&found))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(io::Error::from(errno)),
        };
        Ok(Standing {
            named: find(&self.name)?,
            beside: find(&self.temporary)?,
            above,
        })
    }

    /// Exchanges both, if that is not done yet.
    fn put_in_place(&self) -> io::Result<()> {
        let standing = self.look()?;
        if standing.named == self.tree {
            return Ok(());
        }
        let other = |what: &str| {
            let shown = Path::new(self.above.as_os_str()).join(self.temporary.as_os_str());
            io::Error::other(format!("{what}; the sandbox runs in {}", shown.display()))
        };
        if standing.beside != self.tree {
            return Err(other("it is neither there nor beside its place"));
        }
        if standing.named != self.old {
            return Err(other("something else has taken its place meanwhile"));
        }
        let flags = match self.old {
            Some(_) => RenameFlags::RENAME_EXCHANGE,
            None => RenameFlags::RENAME_NOREPLACE,
        };
        let (from, to) = (self.temporary.as_os_str(), self.name.as_os_str());
        let exchange = || renameat2(&standing.above, from, &standing.above, to, flags);
        exchange()?;
        if self.old.is_some() && self.look()?.beside != self.old {
            exchange()?;
            return Err(other("something else has taken its place meanwhile"));
        }
        Ok(())
    }

    /// Removes the old one, which nobody needs any more.
    fn remove_old(&self) -> io::Result<()> {
        let standing = self.look()?;
        let Some(beside) = standing.beside else { return Ok(()) };
        if Some(beside) != self.old {
            return Err(io::Error::other("something else is beside its place"));
        }
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let old = open_beneath(standing.above.as_fd(), Path::new(self.temporary.as_os_str()), flags, 0)?;
        let shown = Path::new(self.above.as_os_str()).join(self.temporary.as_os_str());
        if let Some(user) = in_use(&old, &shown)? {
            return Err(io::Error::other(format!("{}: {user}", shown.display())));
        }
        // As long as the new one is not safe, there is the old one.
        syncfs(&standing.above)?;
        remove_all(&standing.above, self.temporary.as_os_str())
    }

    /// Removes the new one, of which nothing comes.
    fn remove_new(&self) -> io::Result<()> {
        let standing = match self.look() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            looked => looked?,
        };
        match (standing.beside, self.tree) {
            (None, _) => Ok(()),
            (Some(beside), Some(tree)) if beside != tree => Err(io::Error::other("something else is beside its place")),
            _ => remove_all(&standing.above, self.temporary.as_os_str()),
        }
    }
}

/// What has the two names.
struct Standing {
    above: OwnedFd,
    named: Option<Inode>,
    beside: Option<Inode>,
}

/// Makes the directory for a tree, below a temporary name; where that is.
pub fn begin(state_dir: &StateDir, id: &Id, place: &Place) -> io::Result<(OwnedFd, PathBuf)> {
    let path = journal_of(state_dir, id);
    let temporary = OsString::from(format!(".floe-{}", id.as_str()));
    let journal = Journal {
        above: Bytes(place.path()?.as_os_str().as_bytes().to_vec()),
        name: Bytes(place.name.as_bytes().to_vec()),
        temporary: Bytes(temporary.as_bytes().to_vec()),
        old: place.old.as_ref().map(fstat).transpose()?.as_ref().map(inode),
        tree: None,
        maker: Process::own(),
        is_committed: false,
    };
    let file = record::make_in(state_dir, |folder| {
        // Two that begin at once see each other.
        let folder = File::open(folder)?;
        folder.lock()?;
        refuse_another(state_dir, &journal)?;
        let file = File::create_new(&path)?;
        folder.sync_all()?;
        Ok(file)
    })?;
    let mut locked = Locked { file, journal: None };
    locked.note(&journal)?;
    mkdirat(&place.above, temporary.as_os_str(), Mode::S_IRWXU)?;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let top = open_beneath(place.above.as_fd(), Path::new(&temporary), flags, 0)?;
    locked.note(&inode(&fstat(&top)?))?;
    try_exchange(&top)?;
    Ok((top, place.path()?.join(temporary)))
}

/// Another one must not be on its way to the same place.
fn refuse_another(state_dir: &StateDir, own: &Journal) -> io::Result<()> {
    for id in record::left(state_dir, "tree").map_err(io::Error::other)? {
        let other = match File::open(journal_of(state_dir, &id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => Journal::read(&opened?)?,
        };
        if other.is_some_and(|other| (&other.above, &other.name) == (&own.above, &own.name)) {
            return Err(io::Error::other(format!(
                "that of hand-over {} is on its way there",
                id.as_str()
            )));
        }
    }
    Ok(())
}

/// Not every filesystem exchanges directories, which is to be known before anything depends on it.
fn try_exchange(top: &OwnedFd) -> io::Result<()> {
    let names = [".floe-1", ".floe-2"];
    for name in names {
        mkdirat(top, name, Mode::S_IRWXU)?;
    }
    let tried = renameat2(top, names[0], top, names[1], RenameFlags::RENAME_EXCHANGE);
    for name in names {
        unlinkat(top, name, UnlinkatFlags::RemoveDir)?;
    }
    tried.map_err(|errno| io::Error::other(format!("its filesystem exchanges no directories: {}", errno.desc())))
}

/// Notes that its sandbox is to run, before it does: what it is in from then on is the tree.
pub fn commit(state_dir: &StateDir, id: &Id) -> Result<(), Refusal> {
    let Some(mut locked) = Locked::take(&journal_of(state_dir, id))? else {
        return Ok(());
    };
    match locked.journal {
        Some(Journal {
            is_committed: false,
            tree: Some(_),
            ..
        }) => {
            let noted = locked.note(&true);
            noted.map_err(|error| Refusal::plain(format!("note that its root tree is to stay: {error}")))
        }
        _ => Ok(()),
    }
}

/// What was decided of the sandbox of a tree: where that is to be, the tree comes to its place.
pub fn settle(state_dir: &StateDir, id: &Id) -> Result<(), Refusal> {
    let locked = Locked::take(&journal_of(state_dir, id))?;
    match locked.as_ref().and_then(|locked| locked.journal.as_ref()) {
        Some(journal) if journal.is_committed => {
            let put = journal.put_in_place();
            put.map_err(|error| Refusal::plain(format!("put its root tree in place: {error}")))
        }
        _ => Ok(()),
    }
}

/// Removes what is not needed any more of a tree that came: the old one, or the new one where nothing came of it. Not while its
/// sandbox may still be held.
pub fn clear(state_dir: &StateDir, id: &Id) -> Result<(), Refusal> {
    let path = journal_of(state_dir, id);
    let Some(locked) = Locked::take(&path)? else {
        return Ok(());
    };
    let failed = |error: io::Error| Refusal::plain(format!("remove a root tree that is not needed any more: {error}"));
    match &locked.journal {
        None => {}
        Some(journal) if journal.is_committed => {
            journal.put_in_place().map_err(failed)?;
            journal.remove_old().map_err(failed)?;
        }
        // It is made still, by another session of the same hand-over.
        Some(journal) if journal.maker != Process::own() && journal.maker.lives() => return Ok(()),
        Some(_) if has_sandbox(state_dir, id)? => return Ok(()),
        Some(journal) => journal.remove_new().map_err(failed)?,
    }
    record::remove(state_dir, &path).map_err(|error| Refusal::of(&error))
}

fn has_sandbox(state_dir: &StateDir, id: &Id) -> Result<bool, Refusal> {
    let all = Sandbox::list(state_dir).map_err(|error| Refusal::of(&error))?;
    let mut own = all
        .iter()
        .filter(|sandbox| sandbox.state().handover.as_deref() == Some(id.as_str()));
    Ok(own.any(Sandbox::is_running))
}

/// The same for trees whose maker was killed.
pub fn clear_left(state_dir: &StateDir) -> Result<(), Refusal> {
    let mut reasons = Vec::new();
    for id in record::left(state_dir, "tree").map_err(|error| Refusal::of(&error))? {
        if let Err(refusal) = clear_one_left(state_dir, &id) {
            reasons.push(refusal.reason);
        }
    }
    match reasons.is_empty() {
        true => Ok(()),
        false => Err(Refusal::plain(reasons.join("; "))),
    }
}

fn clear_one_left(state_dir: &StateDir, id: &Id) -> Result<(), Refusal> {
    let failed = |error: io::Error| Refusal::plain(format!("read what is written of a root tree: {error}"));
    // Whose maker lives is locked by it at times, and not to be waited for.
    let journal = match File::open(journal_of(state_dir, id)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.and_then(|file| Journal::read(&file)).map_err(failed)?,
    };
    // One that was killed may not have ended yet.
    let begin = Instant::now();
    while journal.as_ref().is_some_and(|journal| journal.maker.is_ending()) && begin.elapsed() < MOMENT {
        std::thread::sleep(Duration::from_millis(5));
    }
    if journal.is_some_and(|journal| !journal.maker.lives()) {
        // In this order: who builds a sandbox in it finds no permit any more, or has it held by now.
        Permit::revoke(state_dir, id).map_err(|error| Refusal::of(&error))?;
        clear(state_dir, id)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Place, begin, clear, clear_left, commit, settle};
    use crate::{link::message::Id, record};
    use floe_sandbox::StateDir;
    use std::{fs, path::PathBuf};
    use tempfile::TempDir;

    /// A place with an old tree, and one that comes there.
    struct Coming {
        folder: TempDir,
        state_dir: StateDir,
        id: Id,
        new: PathBuf,
    }

    impl Coming {
        fn begin() -> Self {
            let folder = tempfile::tempdir().expect("a directory");
            let state_dir = StateDir::new(folder.path().join("state"));
            let roots = folder.path().join("roots");
            fs::create_dir_all(roots.join("name")).expect("a tree");
            fs::write(roots.join("name/old"), "").expect("a file");
            let id = Id::new().expect("an id");
            let mut coming = Self {
                folder,
                state_dir,
                id,
                new: PathBuf::new(),
            };
            coming.new = coming.another().expect("a tree that comes");
            fs::write(coming.new.join("new"), "").expect("a file");
            coming
        }

        fn place(&self) -> PathBuf {
            self.folder.path().join("roots/name")
        }

        fn another(&self) -> Result<PathBuf, String> {
            let place = Place::find(&self.place(), &[self.folder.path().join("roots")])?;
            let begun = begin(&self.state_dir, &self.id, &place);
            begun.map(|(_, path)| path).map_err(|error| error.to_string())
        }

        fn is_forgotten(&self) -> bool {
            record::left(&self.state_dir, "tree").expect("a list").is_empty()
        }
    }

    #[test]
    fn what_is_decided_is_carried_out_once() {
        let coming = Coming::begin();
        commit(&coming.state_dir, &coming.id).expect("noted");
        for _ in 0..2 {
            settle(&coming.state_dir, &coming.id).expect("put in place");
            assert!(coming.place().join("new").exists() && coming.new.join("old").exists());
        }
        clear(&coming.state_dir, &coming.id).expect("removed");
        assert!(coming.place().join("new").exists() && !coming.new.exists() && coming.is_forgotten());
        settle(&coming.state_dir, &coming.id).expect("nothing left to do");
    }

    #[test]
    fn what_is_decided_is_made_up_for() {
        let coming = Coming::begin();
        commit(&coming.state_dir, &coming.id).expect("noted");
        // Whoever was told of it was killed before anything was done.
        clear(&coming.state_dir, &coming.id).expect("put in place");
        assert!(coming.place().join("new").exists() && !coming.new.exists() && coming.is_forgotten());
    }

    #[test]
    fn of_what_nothing_comes_only_the_new_one_goes() {
        let coming = Coming::begin();
        settle(&coming.state_dir, &coming.id).expect("nothing was decided");
        clear_left(&coming.state_dir).expect("its maker lives");
        assert!(coming.new.join("new").exists());
        clear(&coming.state_dir, &coming.id).expect("removed");
        assert!(coming.place().join("old").exists() && !coming.new.exists() && coming.is_forgotten());
    }

    #[test]
    fn what_has_taken_the_place_meanwhile_stays() {
        let coming = Coming::begin();
        commit(&coming.state_dir, &coming.id).expect("noted");
        let aside = coming.folder.path().join("roots/aside");
        fs::rename(coming.place(), &aside).expect("moved");
        fs::create_dir(coming.place()).expect("another one");
        settle(&coming.state_dir, &coming.id).expect_err("it is another one");
        clear(&coming.state_dir, &coming.id).expect_err("it is another one");
        assert!(coming.new.join("new").exists() && aside.join("old").exists());
        fs::remove_dir(coming.place()).expect("empty");
        fs::rename(&aside, coming.place()).expect("moved back");
        clear(&coming.state_dir, &coming.id).expect("put in place");
        assert!(coming.place().join("new").exists() && coming.is_forgotten());
    }

    #[test]
    fn two_do_not_come_to_one_place() {
        let mut coming = Coming::begin();
        let first = std::mem::replace(&mut coming.id, Id::new().expect("an id"));
        let refused = coming.another().expect_err("one is on its way there");
        assert!(refused.contains(first.as_str()), "{refused}");
        clear(&coming.state_dir, &first).expect("removed");
        coming.another().expect("nobody else");
    }
}
