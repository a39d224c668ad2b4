//! The IPC namespaces of a tree, and which of them a segment or a queue is of: one may be used where its namespace is not.

use super::IpcError;
use crate::{
    ns::{Others, origin, run_in, run_inside},
    tree::FoundTree,
};
use floe_image::record::NamespaceOrigin;
use floe_sys::{
    Pid,
    descriptor::is_same_file,
    mount,
    namespace::Kind,
    sysv::{self, Attachment, Segment},
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

/// Those that are the tree's own, by their numbers in the image.
#[derive(Debug, Default)]
pub struct IpcSpaces {
    all: Vec<IpcSpace>,
    /// The root of the filesystem of the host's queues, where the tree's root is in the host's namespace.
    hosts_queues: Option<File>,
    /// The memory of segments that floe itself has attached to know them by.
    known: BTreeMap<(u32, i32), (Attachment, File)>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct IpcSpace {
    /// Its number.
    pub number: u32,
    inode: u64,
    file: OwnedFd,
    /// The root of the filesystem of its POSIX message queues; none where the kernel has no queues.
    pub queues: Option<File>,
    /// Its segments, by identifier.
    pub segments: Vec<Segment>,
}

impl IpcSpace {
    /// The namespace itself.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What findings call something in it.
    pub fn title(&self, object: &str) -> String {
        match self.number {
            0 => object.to_owned(),
            _ => format!("{object} of IPC namespace ipc:[{}]", self.inode),
        }
    }

    fn has_attached(&self, id: i32) -> bool {
        let mut found = self.segments.iter();
        found.any(|segment| segment.permission.id == id && segment.attached > 0)
    }
}

fn read(path: &str) -> impl Fn(io::Error) -> IpcError + '_ {
    move |source| IpcError::Look {
        path: path.to_owned(),
        source,
    }
}

impl IpcSpaces {
    /// Those of the tree's tasks, but the host's.
    ///
    /// # Errors
    /// [`IpcError`].
    pub fn find(tree: &FoundTree, others: &Others) -> Result<Self, IpcError> {
        let mut found = Self::default();
        let Some(root) = tree.root() else { return Ok(found) };
        match origin(root.task(), "ipc")? {
            NamespaceOrigin::Own => {
                let path = format!("/proc/{}/ns/ipc", root.task());
                let file = File::open(&path).map_err(read(&path))?;
                found.add(0, file.into())?;
            }
            NamespaceOrigin::Host => found.hosts_queues = run_inside(root.task(), CloneFlags::CLONE_NEWIPC, hosts)?,
        }
        for (number, file) in others.of_kind(Kind::Ipc) {
            let file = file.try_clone_to_owned().map_err(read("IPC namespace"))?;
            found.add(number, file)?;
        }
        Ok(found)
    }

    fn add(&mut self, number: u32, file: OwnedFd) -> Result<(), IpcError> {
        let look = || {
            let mut segments = sysv::segments()?;
            segments.sort_by_key(|segment| segment.permission.id);
            Ok((segments, queues()?))
        };
        let (segments, queues) = run_in(file.as_fd(), look).map_err(read("IPC namespace"))?;
        let file = File::from(file);
        self.all.push(IpcSpace {
            number,
            inode: file.metadata().map_err(read("IPC namespace"))?.ino(),
            file: file.into(),
            queues,
            segments,
        });
        Ok(())
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[IpcSpace] {
        &self.all
    }

    /// The one whose POSIX message queues are on the device `number`, as stat(2) has it.
    pub(crate) fn of_queues(&self, number: u64) -> Option<u32> {
        let mut all = self.all.iter();
        all.find(|space| is_on(space.queues.as_ref(), number))
            .map(|space| space.number)
    }

    /// The same for a mount of queues, which may be those of the host where these are the tree root's.
    pub(crate) fn shown_by(&self, number: u64) -> Option<u32> {
        let hosts = is_on(self.hosts_queues.as_ref(), number).then_some(0);
        hosts.or_else(|| self.of_queues(number))
    }

    /// The one that the segment is of which `task` has attached with the identifier `id`, and whose memory is behind `magic`.
    ///
    /// # Errors
    /// Those of looking at that, or of attaching those that it may be.
    pub(crate) fn of_segment(&mut self, task: Pid, id: i32, magic: &str) -> io::Result<Option<u32>> {
        let able: Vec<usize> = (0..self.all.len())
            .filter(|place| self.all[*place].has_attached(id))
            .collect();
        let own = std::fs::metadata(format!("/proc/{task}/ns/ipc"))?.ino();
        match able[..] {
            [] => return Ok(None),
            // Where it is another one, it is counted in vain.
            [only] if self.all[only].inode == own => return Ok(Some(self.all[only].number)),
            _ => {}
        }
        let wanted = File::open(magic)?;
        for place in able {
            let known = self.memory(place, id)?;
            if is_same_file(known.as_fd(), wanted.as_fd())? {
                return Ok(Some(self.all[place].number));
            }
        }
        Ok(None)
    }

    /// The memory of a segment.
    fn memory(&mut self, place: usize, id: i32) -> io::Result<&File> {
        let space = &self.all[place];
        let key = (space.number, id);
        match self.known.entry(key) {
            Entry::Occupied(known) => Ok(&known.into_mut().1),
            Entry::Vacant(place) => {
                let segment = space.segments.iter().find(|segment| segment.permission.id == id);
                let segment = segment.ok_or(io::ErrorKind::NotFound)?;
                let attachment = run_in(space.file(), || Attachment::new(segment))?;
                let file = File::open(attachment.link())?;
                Ok(&place.insert((attachment, file)).1)
            }
        }
    }
}

fn is_on(queues: Option<&File>, number: u64) -> bool {
    let found = queues.map(File::metadata);
    found.is_some_and(|found| found.is_ok_and(|found| found.dev() == number))
}

/// That of the host, which an ordinary user may not mount, and has no mounts of.
fn hosts() -> io::Result<Option<File>> {
    match queues() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        found => found,
    }
}

/// The filesystem of the queues of the calling thread's namespace; none where the kernel has no queues.
fn queues() -> io::Result<Option<File>> {
    // Who may not mount here may do it in a mount namespace of its own.
    unshare(CloneFlags::CLONE_NEWNS)?;
    match mount::file_system(c"mqueue") {
        Ok(root) => Ok(Some(root.into())),
        Err(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
