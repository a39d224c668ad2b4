//! One cgroup: its members, and its beginning and end.

use crate::{
    Hierarchies, Kind,
    folder::{self, PARENT, create_below},
};
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
    /// A setting that it does not take.
    #[error("write {value:?} to {path}")]
    Setting {
        /// What was written.
        value: String,
        /// To which file.
        path: PathBuf,
        /// Why it was not taken.
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
    /// A controller that floe can't use here.
    #[error("there is no {controller} controller that floe may use here: {reason}")]
    NoController {
        /// Which.
        controller: String,
        /// Why not.
        reason: String,
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

/// How long tasks may take to end.
pub(crate) const END: Duration = Duration::from_secs(10);

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
    /// The way into the cgroup of a directory.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub(crate) fn to(directory: &Path) -> Result<Self, CgroupError> {
        let path = directory.join("cgroup.procs");
        let file = fs::OpenOptions::new().write(true).open(&path);
        file.map(Self).map_err(wrap("open", &path))
    }

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

pub(crate) fn wrap(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::File { action, path, source }
}

/// Whether an error says that the caller has no right to make a cgroup there.
fn may_not(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::EROFS))
}

/// Where cgroups that freeze can be made, the best place first.
pub(crate) fn parents(hierarchies: &Hierarchies) -> Result<Vec<PathBuf>, CgroupError> {
    let Some((kind, root)) = hierarchies.preferred() else {
        return Ok(Vec::new());
    };
    let mut parents = vec![root.join(PARENT)];
    if kind == Kind::V2 {
        parents.extend(
            hierarchies
                .own_v2()
                .map_err(wrap("find the cgroup of this process in", root))?,
        );
    }
    Ok(parents)
}

impl Cgroup {
    /// Makes one for the sandbox `name`; `None` where the caller may make none that freezes: below floe's own part of the
    /// hierarchy, or, as an ordinary user, below the cgroup that the caller is in, where that was delegated to them.
    ///
    /// # Errors
    /// [`CgroupError`]; the name being taken is one.
    pub fn create(hierarchies: &Hierarchies, name: &str) -> Result<Option<Self>, CgroupError> {
        let Some((kind, _)) = hierarchies.preferred() else {
            return Ok(None);
        };
        for parent in parents(hierarchies)? {
            match create_below(&parent, name, &[]) {
                Ok(path) => return Ok(Some(Self { path, kind })),
                Err(CgroupError::File { source, .. }) if may_not(&source) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
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

    /// Another one of its hierarchy.
    pub(crate) fn beside(&self, path: PathBuf) -> Self {
        Self { path, kind: self.kind }
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
        Entrance::to(&self.path)
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
        for directory in [self.path.clone()].into_iter().chain(folder::below(&self.path)?) {
            let members = folder::members(&directory)?;
            see(&directory, members);
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
            self.let_die()?;
            if started.elapsed() > END {
                return Err(CgroupError::NotEmpty {
                    path: self.path.clone(),
                    seconds: END.as_secs(),
                });
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Sends SIGKILL to every task in it and below it in one deed, of version 2 (Linux 5.14): also those that are frozen or
    /// traced run no instruction of theirs any more. They may take a while to be gone.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn kill_at_once(&self) -> Result<(), CgroupError> {
        let file = self.path.join("cgroup.kill");
        fs::write(&file, "1").map_err(wrap("write", &file))
    }

    /// Lets tasks that were told to end do so: those frozen by version 1 notice a signal only when thawed, those below too.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn let_die(&self) -> Result<(), CgroupError> {
        if self.kind == Kind::V2 {
            return Ok(());
        }
        self.thaw()?;
        self.frozen_below()?.iter().try_for_each(Self::thaw)
    }

    /// Removes it and all below it, once the last tasks have left; and floe's own parent, where that is empty then.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn remove(&self) -> Result<(), CgroupError> {
        folder::remove_all(&self.path)
    }
}
