//! The state directory: one folder a sandbox, with `state.json`, the log and the monitor's socket.

use crate::{
    launch::unique_name,
    link::LinkState,
    processor::ProcessorState,
    spec::{Origin, SandboxSpec},
};
use floe_cgroup::{Cgroup, CgroupError, Cgroups, Hierarchies};
use floe_sys::{Pid, procfs::Stat};
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// Where sandboxes are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir(PathBuf);

/// A state directory that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file.
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
    /// There is one already.
    #[error("a sandbox named {0} exists already; choose another --name, or remove it (floe rm {0})")]
    Taken(String),
    /// There is none.
    #[error("there is no sandbox named {0} (floe ps lists them)")]
    Unknown(String),
    /// Several users may have written what is there.
    #[error(
        "{0}: the state directory, this folder and its state.json are not one user's alone, so that root can't tell whose the sandbox \
         is (ls -ld); root's must not be writable by others"
    )]
    Mixed(PathBuf),
    /// What its user has written names what is not theirs.
    #[error("{path} names {what}, which is not user {user}'s, whose file that is")]
    Others {
        /// The file.
        path: PathBuf,
        /// What.
        what: String,
        /// Whose the file is.
        user: u32,
    },
    /// A name that is no plain file name.
    #[error("{0:?} is no name for a sandbox: letters, digits, dots, dashes and underscores, at most 64")]
    BadName(String),
    /// Not what floe wrote.
    #[error("{path} does not hold the state of a sandbox")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

fn wrap(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::File { action, path, source }
}

/// How a sandbox stands, as its monitor wrote it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Being made.
    Created,
    /// PID 1 runs.
    Running,
    /// It came from another host and stands frozen until it is known whether it counts: [`SandboxState::handover`].
    Held,
    /// PID 1 has ended: exit status, or 128 + signal.
    Exited(i32),
}

/// How the standard streams lead to the monitor, as the workload sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleState {
    /// Inode numbers of the pipes that are standard input, output, error.
    Pipes([Option<u64>; 3]),
    /// Path of the terminal inside the sandbox.
    Terminal(PathBuf),
}

/// What is written down of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxState {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub status: Status,
    /// PID 1 in the host's namespace.
    pub pid1: i32,
    /// When PID 1 started, clock ticks since boot: tells it from a later process with the same PID.
    pub pid1_start: u64,
    /// The monitor.
    pub monitor: i32,
    /// When it started, likewise.
    pub monitor_start: u64,
    /// Its cgroup, where it has one of its own.
    pub cgroup: Option<PathBuf>,
    /// Its cgroups in further hierarchies.
    #[serde(default)]
    pub further_cgroups: Vec<PathBuf>,
    /// Seconds since 1970.
    pub created: u64,
    /// Its command line.
    pub command: Vec<String>,
    /// Its streams.
    pub console: ConsoleState,
    /// What joins it to the host's network, where it has a network of its own.
    pub link: Option<LinkState>,
    /// Whether it has a mount namespace of its own.
    pub mount: Origin,
    /// What its programs may have chosen by.
    #[serde(default)]
    pub processor: ProcessorState,
    /// The hand-over by which it came from another host.
    #[serde(default)]
    pub handover: Option<String>,
}

impl StateDir {
    /// The directory at `path`; it is made when the first sandbox is.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The folder of a sandbox.
    ///
    /// # Errors
    /// [`StateError::BadName`].
    pub fn folder(&self, name: &str) -> Result<PathBuf, StateError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let good = !name.is_empty() && name.len() <= 64 && name.chars().all(plain) && !name.starts_with('.');
        if good {
            Ok(self.0.join(name))
        } else {
            Err(StateError::BadName(name.to_owned()))
        }
    }

    /// Where the folder of a new sandbox can be made.
    ///
    /// # Errors
    /// [`StateError::Taken`], [`StateError::BadName`].
    pub(crate) fn vacant(&self, name: &str) -> Result<PathBuf, StateError> {
        let folder = self.folder(name)?;
        if folder.exists() {
            Err(StateError::Taken(name.to_owned()))
        } else {
            Ok(folder)
        }
    }

    /// Makes the folder of a new sandbox, with its first state in it.
    ///
    /// # Errors
    /// [`StateError::Taken`] among others.
    pub(crate) fn claim(&self, state: &SandboxState) -> Result<PathBuf, StateError> {
        let name = &state.name;
        let folder = self.folder(name)?;
        fs::create_dir_all(&self.0).map_err(wrap("make", &self.0))?;
        let draft = self.draft(name, state.monitor);
        fs::create_dir(&draft).map_err(wrap("make", &draft))?;
        // One that is there is never empty, so that this does not replace it.
        let claimed = state.write(&draft).and_then(|()| match fs::rename(&draft, &folder) {
            Ok(()) => Ok(folder),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOTEMPTY)) => {
                Err(StateError::Taken(name.clone()))
            }
            Err(error) => Err(wrap("make", &folder)(error)),
        });
        if claimed.is_err()
            && let Err(error) = fs::remove_dir_all(&draft)
        {
            tracing::error!(%error, "remove the folder of a sandbox that did not start");
        }
        claimed
    }

    /// The folder as long as nothing is in it.
    pub(crate) fn draft(&self, name: &str, monitor: i32) -> PathBuf {
        self.0.join(format!(".{}", unique_name(name, monitor)))
    }

    /// A name nobody has.
    pub(crate) fn free_name(&self) -> String {
        let seed = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_nanos() as u64);
        let mut number = seed ^ (u64::from(std::process::id()) << 32);
        loop {
            number = number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let name = format!("floe-{:08x}", number >> 32);
            if !self.0.join(&name).exists() {
                return name;
            }
        }
    }

    /// The names of all sandboxes, sorted. What lies there besides, and can be none, is passed over.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn names(&self) -> Result<Vec<String>, StateError> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(wrap("list", &self.0)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(wrap("list", &self.0))?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if self.folder(&name).is_ok_and(|folder| folder.is_dir()) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

impl SandboxState {
    /// Reads the state of the sandbox in `folder`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn read(folder: &Path) -> Result<Self, StateError> {
        Self::read_of(folder).map(|(state, _)| state)
    }

    /// The same, and whose the file is.
    ///
    /// # Errors
    /// [`StateError`].
    pub(crate) fn read_of(folder: &Path) -> Result<(Self, u32), StateError> {
        let path = folder.join("state.json");
        let file = match fs::OpenOptions::new()
            .read(true)
            .custom_flags(Self::FLAGS.bits())
            .open(&path)
        {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return Err(StateError::Unknown(name));
            }
            Err(error) => return Err(wrap("read", &path)(error)),
        };
        let user = file.metadata().map_err(wrap("read", &path))?.uid();
        Self::read_file(file, &path).map(|state| (state, user))
    }

    /// How its file is opened, which may be another user's: no link is followed, and nothing waited for.
    pub(crate) const FLAGS: OFlag = OFlag::O_NOFOLLOW
        .union(OFlag::O_NONBLOCK)
        .union(OFlag::O_NOCTTY)
        .union(OFlag::O_CLOEXEC);

    /// Reads it from its file.
    ///
    /// # Errors
    /// [`StateError`].
    pub(crate) fn read_file(file: File, path: &Path) -> Result<Self, StateError> {
        // A command line has room in a fourth of the most that a stack may have, 6 MiB; written down each byte may take six.
        const MOST_BYTES: u64 = 64 << 20;
        let read = || -> io::Result<Vec<u8>> {
            let found = file.metadata()?;
            if !found.is_file() || found.len() > MOST_BYTES {
                return Err(io::Error::other("it is no regular file, or too large for a state"));
            }
            let mut text = Vec::new();
            file.take(MOST_BYTES).read_to_end(&mut text)?;
            Ok(text)
        };
        let found = read().map_err(wrap("read", path))?;
        serde_json::from_slice(&found).map_err(|source| StateError::Malformed {
            path: path.to_owned(),
            source,
        })
    }

    /// Writes it, whole or not at all.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), StateError> {
        let (path, beside) = (folder.join("state.json"), folder.join("state.json.new"));
        let text = serde_json::to_vec_pretty(self).map_err(|source| StateError::Malformed {
            path: path.clone(),
            source,
        })?;
        fs::write(&beside, text).map_err(wrap("write", &beside))?;
        fs::rename(&beside, &path).map_err(wrap("replace", &path))
    }

    /// All its cgroups.
    ///
    /// # Errors
    /// [`CgroupError::NotACgroup`] where the one that freezes it is gone.
    pub fn cgroups(&self) -> Result<Cgroups, CgroupError> {
        Ok(Cgroups {
            freezer: self.cgroup.as_deref().map(Cgroup::open).transpose()?,
            further: self.further_cgroups.clone(),
        })
    }

    /// Notes its cgroups.
    pub(crate) fn note(&mut self, cgroups: &Cgroups) {
        self.cgroup = cgroups.freezer.as_ref().map(|cgroup| cgroup.path().to_owned());
        self.further_cgroups.clone_from(&cgroups.further);
    }

    /// What is still there of its cgroups.
    pub(crate) fn remaining_cgroups(&self) -> Cgroups {
        Cgroups {
            freezer: self.cgroup.as_deref().and_then(|path| Cgroup::open(path).ok()),
            further: self.further_cgroups.clone(),
        }
    }

    /// Those that its monitor had made and not yet noted when it died.
    pub(crate) fn unnoted_cgroups(&self) -> Result<Cgroups, CgroupError> {
        let hierarchies = Hierarchies::probe().map_err(|source| CgroupError::File {
            action: "read",
            path: PathBuf::from("/proc/self/mountinfo"),
            source,
        })?;
        Cgroups::left_by(&hierarchies, &unique_name(&self.name, self.monitor))
    }

    /// That of a sandbox whose monitor calls this.
    pub(crate) fn new(name: &str, spec: &SandboxSpec) -> Self {
        let monitor = std::process::id() as i32;
        Self {
            name: name.to_owned(),
            status: Status::Created,
            pid1: 0,
            pid1_start: 0,
            monitor,
            monitor_start: Stat::of(Pid::new(monitor)).map_or(0, |stat| stat.starttime),
            cgroup: None,
            further_cgroups: Vec::new(),
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
            command: spec
                .command
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            console: ConsoleState::Pipes([None; 3]),
            link: None,
            mount: spec.mount,
            processor: spec.processor.here(),
            handover: None,
        }
    }
}
