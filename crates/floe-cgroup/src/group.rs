//! One cgroup: its members, and its beginning and end.

use crate::{Hierarchies, Kind};
use floe_sys::Pid;
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
};
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A cgroup that does not obey.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file of it.
    #[error("{action} {path}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Somebody else has it locked.
    #[error("another floe is freezing, thawing or saving the tasks of {}; try again when it is done", .0.display())]
    Busy(PathBuf),
    /// The path is in none.
    #[error("{0} is in no cgroup hierarchy that can freeze")]
    NotACgroup(PathBuf),
    /// Something in it does not freeze.
    #[error("the tasks of {path} did not freeze within {seconds} s (one may be in an uninterruptible sleep)")]
    TimedOut {
        /// Which.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// Something in it does not end.
    #[error("tasks of {path} did not end within {seconds} s")]
    NotEmpty {
        /// Which.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// The watcher that thaws it should floe die.
    #[error("start the watcher of {path}")]
    Watcher {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Errno,
    },
}

/// floe's own part of the hierarchy.
const PARENT: &str = "floe";
/// How long tasks may take to end.
const END: Duration = Duration::from_secs(10);

/// A cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
    kind: Kind,
}

/// A way into a cgroup.
#[derive(Debug)]
pub struct Entrance(fs::File);

impl Entrance {
    /// Moves the calling process into the cgroup.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn enter(&self) -> io::Result<()> {
        (&self.0).write_all(b"0")
    }
}

/// Keeps other floes from freezing, thawing and saving tasks.
#[derive(Debug)]
#[must_use = "dropped, it lets others go on"]
pub struct Lock {
    _directory: fs::File,
}

impl Lock {
    /// Locks a directory that stands for tasks, by flock(2).
    ///
    /// # Errors
    /// [`CgroupError::Busy`] where another floe has it.
    pub fn of(path: &Path) -> Result<Self, CgroupError> {
        let directory = fs::File::open(path).map_err(wrap("open", path))?;
        match directory.try_lock() {
            Ok(()) => Ok(Self { _directory: directory }),
            Err(fs::TryLockError::WouldBlock) => Err(CgroupError::Busy(path.to_owned())),
            Err(fs::TryLockError::Error(error)) => Err(wrap("lock", path)(error)),
        }
    }
}

fn wrap(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::File { action, path, source }
}

/// Whether an error says that the caller has no right to make a cgroup there.
fn may_not(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::EROFS))
}

impl Cgroup {
    /// Makes one for the sandbox `name`; `None` where the caller may make none that freezes: below floe's own part of the
    /// hierarchy, or, as an ordinary user, below the cgroup that the caller is in, where that was delegated to them.
    ///
    /// # Errors
    /// [`CgroupError`]; the name being taken is one.
    pub fn create(hierarchies: &Hierarchies, name: &str) -> Result<Option<Self>, CgroupError> {
        let Some((kind, root)) = hierarchies.preferred() else {
            return Ok(None);
        };
        let mut parents = vec![root.join(PARENT)];
        if kind == Kind::V2 {
            parents.extend(
                hierarchies
                    .own_v2()
                    .map_err(wrap("find the cgroup of this process in", root))?,
            );
        }
        for parent in parents {
            match Self::create_below(&parent, (kind, name)) {
                Ok(made) => return Ok(Some(made)),
                Err(CgroupError::File { source, .. }) if may_not(&source) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn create_below(parent: &Path, (kind, name): (Kind, &str)) -> Result<Self, CgroupError> {
        loop {
            match fs::create_dir(parent) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(wrap("make cgroup", parent)(error)),
            }
            let path = parent.join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path, kind }),
                // Another floe just removed the parent because it was empty.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(wrap("make cgroup", &path)(error)),
            }
        }
    }

    /// The cgroup at a path below the mount point of a hierarchy.
    ///
    /// # Errors
    /// [`CgroupError::NotACgroup`].
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let has = |file: &str| path.join(file).exists();
        let kind = if has("cgroup.freeze") {
            Kind::V2
        } else if has("freezer.state") {
            Kind::V1Freezer
        } else {
            return Err(CgroupError::NotACgroup(path.to_owned()));
        };
        Ok(Self {
            path: path.to_owned(),
            kind,
        })
    }

    /// Locks it against other floes.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] where another one has it.
    pub fn lock(&self) -> Result<Lock, CgroupError> {
        Lock::of(&self.path)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn read(&self, file: &str) -> Result<String, CgroupError> {
        let path = self.path.join(file);
        fs::read_to_string(&path).map_err(wrap("read", &path))
    }

    pub(crate) fn write(&self, file: &str, text: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        fs::write(&path, text).map_err(wrap("write", &path))
    }

    /// Moves a process, with all its threads, into it.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn add(&self, pid: Pid) -> Result<(), CgroupError> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Its directory, for children that are to be born into it; `None` for version 1, which knows no such thing.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn birthplace(&self) -> Result<Option<fs::File>, CgroupError> {
        match self.kind {
            Kind::V1Freezer => Ok(None),
            Kind::V2 => fs::File::open(&self.path).map(Some).map_err(wrap("open", &self.path)),
        }
    }

    /// A way in for a process that may not see the hierarchy any more when it uses it.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn entrance(&self) -> Result<Entrance, CgroupError> {
        let path = self.path.join("cgroup.procs");
        let file = fs::OpenOptions::new().write(true).open(&path);
        file.map(Entrance).map_err(wrap("open", &path))
    }

    /// Its processes and those of its sub-cgroups.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn processes(&self) -> Result<Vec<Pid>, CgroupError> {
        let mut found = Vec::new();
        self.visit(|_, members| found.extend(members))?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The cgroup that a process is in, where that is this one or one below it.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn holding(&self, process: Pid) -> Result<Option<Self>, CgroupError> {
        let mut found = None;
        self.visit(|directory, members| {
            if members.contains(&process) {
                found = Some(Self {
                    path: directory.to_owned(),
                    kind: self.kind,
                });
            }
        })?;
        Ok(found)
    }

    /// Tells `see` of it and of each cgroup below it, with the processes that are in just that.
    fn visit(&self, mut see: impl FnMut(&Path, Vec<Pid>)) -> Result<(), CgroupError> {
        let mut rest = vec![self.path.clone()];
        while let Some(directory) = rest.pop() {
            let path = directory.join("cgroup.procs");
            let text = fs::read_to_string(&path).map_err(wrap("read", &path))?;
            let members = text.lines().filter_map(|line| line.parse().ok());
            see(&directory, members.filter(|pid| *pid != 0).map(Pid::new).collect());
            for entry in fs::read_dir(&directory).map_err(wrap("list", &directory))? {
                let entry = entry.map_err(wrap("list", &directory))?;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    rest.push(entry.path());
                }
            }
        }
        Ok(())
    }

    /// Ends every task in it, also frozen ones.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        let started = Instant::now();
        loop {
            let processes = self.processes()?;
            if processes.is_empty() {
                return Ok(());
            }
            for pid in processes {
                // One that is gone meanwhile is what is wanted.
                if let Err(error) = kill(pid.nix(), Signal::SIGKILL)
                    && error != Errno::ESRCH
                {
                    return Err(wrap("end a task of", &self.path)(error.into()));
                }
            }
            // Tasks frozen by version 1 notice a signal only when thawed.
            if self.kind == Kind::V1Freezer {
                self.thaw()?;
            }
            if started.elapsed() > END {
                return Err(CgroupError::NotEmpty {
                    path: self.path.clone(),
                    seconds: END.as_secs(),
                });
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Removes it, once its last task has left; and floe's own parent, where that is empty then.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn remove(&self) -> Result<(), CgroupError> {
        let started = Instant::now();
        loop {
            match fs::remove_dir(&self.path) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                // The kernel takes tasks that have ended out of it a moment later, and tells nobody when.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && started.elapsed() < END => {
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(error) => return Err(wrap("remove cgroup", &self.path)(error)),
            }
        }
        if let Some(parent) = self.path.parent().filter(|parent| parent.ends_with(PARENT))
            && let Err(error) = fs::remove_dir(parent)
        {
            tracing::trace!(%error, "floe's parent cgroup stays");
        }
        Ok(())
    }
}
