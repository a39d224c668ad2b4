//! What keeps namespaces alive: processes and threads in them, what their children will be in, mounts of nsfs, open
//! descriptors.
//!
//! Sockets keep their network alive too, but are not asked for it (SIOCGSKNS): they would have to be fetched
//! (pidfd_getfd(2)), and then count as sockets of the fetcher's cgroup (net_cls, net_prio of version 1).

use super::NamespacesError;
use floe_sys::{
    Pid,
    namespace::{Kind, parse_link},
    procfs::{self, ProcError},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// What is to be seen of one namespace.
#[derive(Debug)]
pub(super) struct Held {
    pub kind: Kind,
    /// Opens it.
    pub path: PathBuf,
    /// Processes, lowest first.
    pub members: Vec<Pid>,
    pub mounts: Vec<PathBuf>,
}

/// All namespaces that something shows to the caller.
#[derive(Debug, Default)]
pub(super) struct Holders {
    pub namespaces: HashMap<u64, Held>,
}

impl Holders {
    /// Looks at all processes. What is likely to stay is looked at first, so that it gives the path.
    pub fn look() -> Result<Self, NamespacesError> {
        let mut holders = Self::default();
        let processes = procfs::processes()?;
        for pid in &processes {
            for (kind, inode) in of_task(&format!("/proc/{pid}"))? {
                let path = format!("/proc/{pid}/ns/{kind}").into();
                holders.note(kind, inode, path).members.push(*pid);
            }
        }
        holders.mounts()?;
        for pid in &processes {
            holders.of_threads(*pid)?;
            holders.of_children_to_be(*pid)?;
            holders.of_descriptors(*pid)?;
        }
        Ok(holders)
    }

    fn note(&mut self, kind: Kind, inode: u64, path: PathBuf) -> &mut Held {
        self.namespaces.entry(inode).or_insert_with(|| Held {
            kind,
            path,
            members: Vec::new(),
            mounts: Vec::new(),
        })
    }

    /// Threads other than the first, which may be elsewhere than it.
    fn of_threads(&mut self, pid: Pid) -> Result<(), NamespacesError> {
        let Some(threads) = passing(procfs::threads(pid))? else {
            return Ok(());
        };
        for tid in threads.into_iter().skip(1) {
            let folder = format!("/proc/{pid}/task/{tid}");
            for (kind, inode) in of_task(&folder)? {
                self.note(kind, inode, format!("{folder}/ns/{kind}").into());
            }
        }
        Ok(())
    }

    /// Those that a process has made for its children, of which there is none yet.
    fn of_children_to_be(&mut self, pid: Pid) -> Result<(), NamespacesError> {
        for name in ["pid_for_children", "time_for_children"] {
            let path = PathBuf::from(format!("/proc/{pid}/ns/{name}"));
            self.of_link(&path)?;
        }
        Ok(())
    }

    fn of_descriptors(&mut self, pid: Pid) -> Result<(), NamespacesError> {
        for number in passing(procfs::descriptors(pid))?.unwrap_or_default() {
            self.of_link(Path::new(&format!("/proc/{pid}/fd/{number}")))?;
        }
        Ok(())
    }

    fn of_link(&mut self, path: &Path) -> Result<(), NamespacesError> {
        if let Some((kind, inode)) = link(path)? {
            self.note(kind, inode, path.to_owned());
        }
        Ok(())
    }

    /// Mounts, seen by one process of each mount namespace, the caller first: of a mount that several have by the same
    /// path, the caller's is told.
    fn mounts(&mut self) -> Result<(), NamespacesError> {
        let own = link(Path::new("/proc/self/ns/mnt"))?.map(|(_, inode)| inode);
        let others = self.namespaces.iter().filter(|(inode, held)| {
            let is_mount = held.kind == Kind::Mount;
            is_mount && Some(**inode) != own
        });
        let mut viewers: Vec<Pid> = others.filter_map(|(_, held)| held.members.first().copied()).collect();
        viewers.sort_unstable();
        let mut known: HashSet<(u64, Vec<u8>)> = HashSet::new();
        self.seen_mounts("/proc/self", None, &mut known)?;
        for pid in viewers {
            let folder = format!("/proc/{pid}");
            self.seen_mounts(&folder, Some(&folder), &mut known)?;
        }
        Ok(())
    }

    fn seen_mounts(
        &mut self,
        folder: &str,
        outside: Option<&str>,
        known: &mut HashSet<(u64, Vec<u8>)>,
    ) -> Result<(), NamespacesError> {
        for mount in passing(procfs::mount_points(folder))?.unwrap_or_default() {
            let Some((kind, inode)) = parse_link(&mount.root) else {
                continue;
            };
            if !known.insert((inode, mount.path.clone())) {
                continue;
            }
            let path = Path::new(OsStr::from_bytes(&mount.path));
            let path = match outside {
                None => path.to_owned(),
                Some(process) => Path::new(process)
                    .join("root")
                    .join(path.strip_prefix("/").unwrap_or(path)),
            };
            self.note(kind, inode, path.clone()).mounts.push(path);
        }
        Ok(())
    }
}

/// The namespaces of the task with this folder of /proc; none where the caller may not know them, or it has ended.
pub(super) fn of_task(folder: &str) -> Result<BTreeMap<Kind, u64>, NamespacesError> {
    let mut found = BTreeMap::new();
    for kind in Kind::ALL {
        if let Some((_, inode)) = link(Path::new(&format!("{folder}/ns/{kind}")))? {
            found.insert(kind, inode);
        }
    }
    Ok(found)
}

/// The namespace that a link stands for, if it does for one.
fn link(path: &Path) -> Result<Option<(Kind, u64)>, NamespacesError> {
    match std::fs::read_link(path) {
        Ok(target) => Ok(parse_link(target.as_os_str().as_bytes())),
        Err(error) if is_passing(&error) => Ok(None),
        Err(source) => Err(NamespacesError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// `None` where the task has ended, or is none of those that the caller may look at.
fn passing<T>(result: Result<T, ProcError>) -> Result<Option<T>, NamespacesError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ProcError::Read { source, .. }) if is_passing(&source) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A task that has ended has no namespaces but those of its PIDs, and of mounts it tells EINVAL.
fn is_passing(error: &io::Error) -> bool {
    let expected = [libc::ENOENT, libc::ESRCH, libc::EACCES, libc::EPERM, libc::EINVAL];
    error.raw_os_error().is_some_and(|number| expected.contains(&number))
}
