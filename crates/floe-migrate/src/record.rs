//! What is written down of hand-overs, in `.migrations` of the state directory: at the source how far each has come
//! (`ID.json`), at the target the permit to hold what is being built (`ID.building`).

use crate::{
    keys::Fingerprint,
    link::{
        Address,
        message::{Id, Instance},
    },
    protocol::Phase,
};
use floe_sandbox::{HandedOver, Sandbox, StateDir};
use floe_sys::{
    Pid,
    procfs::{Stat, Status, read_text},
};
use nix::{
    fcntl::{AT_FDCWD, AtFlags, OFlag},
    sys::stat::Mode,
    unistd::linkat,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    num::NonZeroU64,
    os::{fd::AsRawFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

/// A record that can't be kept.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct RecordError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn wrap(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError { action, path, source }
}

/// A process, told from a later one with its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    /// When it started, in clock ticks since boot.
    start: u64,
    /// Of which start of the machine.
    boot: String,
}

impl Process {
    fn of(pid: i32, start: u64) -> Self {
        let boot = read_text("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            pid,
            start,
            boot: boot.trim().to_owned(),
        }
    }

    pub(crate) fn own() -> Self {
        let pid = std::process::id() as i32;
        Self::of(pid, Stat::of(Pid::new(pid)).map_or(0, |stat| stat.starttime))
    }

    /// Whether it has not ended yet.
    #[must_use]
    pub fn lives(&self) -> bool {
        let lives = |stat: &Stat| stat.state != b'Z' || stat.num_threads > 1;
        Stat::of(Pid::new(self.pid)).is_ok_and(|stat| Self::of(self.pid, stat.starttime) == *self && lives(&stat))
    }

    /// Whether it was killed and has not ended yet: it runs no instruction of its own any more.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        const KILLED: u64 = 1 << (libc::SIGKILL - 1);
        // It stays pending for the process until that is gone: each thread takes a copy of its own (complete_signal in
        // kernel/signal.c).
        let status = Status::read(&format!("/proc/{}", self.pid));
        status.is_ok_and(|status| status.shared_pending & KILLED != 0) && self.lives()
    }
}

/// A source's record of a hand-over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Of the hand-over.
    pub id: Id,
    /// How far it has come.
    pub phase: Phase,
    /// Name of the sandbox.
    pub sandbox: String,
    /// Where it goes.
    pub address: Address,
    /// Whether that is reached without encryption.
    pub insecure: bool,
    /// Who accepted it there.
    pub instance: Instance,
    /// The key that was shown there.
    pub key: Option<Fingerprint>,
    /// Whether it was frozen before, and is to stay so.
    pub was_frozen: bool,
    /// The sandbox's first process.
    pub pid1: Process,
    /// Its monitor.
    pub monitor: Process,
    /// The floe that works on it.
    pub worker: Process,
    /// Memory that goes over when the sandbox runs at the target already.
    #[serde(default)]
    pub rest: Option<Left>,
}

/// Memory in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Which.
    pub path: PathBuf,
    /// Bytes per second that are sent of it, at most.
    pub bandwidth: Option<NonZeroU64>,
}

/// Where a sandbox goes.
#[derive(Debug)]
pub struct There<'a> {
    /// The address.
    pub address: &'a Address,
    /// Whether that is reached without encryption.
    pub insecure: bool,
    /// Who accepted it.
    pub instance: Instance,
    /// The key that was shown.
    pub key: Option<Fingerprint>,
}

fn folder(state_dir: &StateDir) -> PathBuf {
    state_dir.path().join(".migrations")
}

/// The path of something that belongs to a hand-over.
pub(crate) fn file(state_dir: &StateDir, id: &Id, kind: &str) -> PathBuf {
    folder(state_dir).join(format!("{}.{kind}", id.as_str()))
}

/// The hand-overs of which there is something of a kind.
pub(crate) fn left(state_dir: &StateDir, kind: &str) -> Result<Vec<Id>, RecordError> {
    let folder = folder(state_dir);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrap("list", &folder)(error)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let name = entry.map_err(wrap("list", &folder))?.file_name();
        let id = name
            .to_str()
            .and_then(|name| name.strip_suffix(kind)?.strip_suffix('.'));
        all.extend(id.and_then(|id| Id::try_from(id.to_owned()).ok()));
    }
    Ok(all)
}

/// Makes something in the folder, which others remove whenever nothing is in it.
pub(crate) fn make_in<T>(state_dir: &StateDir, mut make: impl FnMut(&Path) -> io::Result<T>) -> io::Result<T> {
    const ATTEMPTS: usize = 100;
    let folder = folder(state_dir);
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    for _ in 1..ATTEMPTS {
        builder.create(&folder)?;
        match make(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
    }
    make(&folder)
}

/// Removes the folder where nothing is in it.
pub fn tidy(state_dir: &StateDir) {
    if let Err(error) = fs::remove_dir(folder(state_dir)) {
        tracing::debug!(%error, "the folder of migrations stays, or is not there");
    }
}

/// Removes something from the folder, if it is there.
pub(crate) fn remove(state_dir: &StateDir, path: &Path) -> Result<(), RecordError> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(wrap("remove", path)(error)),
    }
    tidy(state_dir);
    Ok(())
}

impl Record {
    /// One of a hand-over that begins.
    #[must_use]
    pub fn begin(id: Id, sandbox: &Sandbox, there: There<'_>, rest: Option<Left>) -> Self {
        let state = sandbox.state();
        Self {
            id,
            phase: Phase::Begun,
            sandbox: state.name.clone(),
            address: there.address.clone(),
            insecure: there.insecure,
            instance: there.instance,
            key: there.key,
            was_frozen: sandbox.status_word() == "frozen",
            pid1: Process::of(state.pid1, state.pid1_start),
            monitor: Process::of(state.monitor, state.monitor_start),
            worker: Process::own(),
            rest,
        }
    }

    /// Its file.
    #[must_use]
    pub fn path(&self, state_dir: &StateDir) -> PathBuf {
        file(state_dir, &self.id, "json")
    }

    /// Writes it, safe on its disk.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn write(&self, state_dir: &StateDir) -> Result<(), RecordError> {
        let path = self.path(state_dir);
        // It has no name until it is whole: nothing is left of one whose floe is killed before that.
        let write = |folder: &Path| -> io::Result<()> {
            let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
            let mut file = File::from(nix::fcntl::open(folder, flags, Mode::from_bits_retain(0o600))?);
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
            linkat(AT_FDCWD, unnamed.as_str(), AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW)?;
            File::open(folder)?.sync_all()
        };
        make_in(state_dir, write).map_err(wrap("write", &path))
    }

    /// What the sandbox's monitor is to write when it ends the tree.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decided(&self, state_dir: &StateDir, tracer: (i32, u64)) -> Result<HandedOver, RecordError> {
        let path = self.path(state_dir);
        let mut decided = self.clone();
        decided.phase = Phase::Decided;
        let in_words =
            |record: &Self| serde_json::to_string_pretty(record).map_err(|error| wrap("write", &path)(error.into()));
        let (text, begun) = (in_words(&decided)?, in_words(self)?);
        Ok(HandedOver {
            path,
            text,
            begun,
            tracer,
        })
    }

    /// How far it has come by what is written.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn written_phase(&self, state_dir: &StateDir) -> Result<Phase, RecordError> {
        read(&self.path(state_dir)).map(|record| record.phase)
    }

    /// Removes it.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn forget(&self, state_dir: &StateDir) -> Result<(), RecordError> {
        remove(state_dir, &self.path(state_dir))
    }

    /// All that nobody works on any more, and those that can't be read.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn left(state_dir: &StateDir) -> Result<(Vec<Self>, Vec<RecordError>), RecordError> {
        let folder = folder(state_dir);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
            Err(error) => return Err(wrap("list", &folder)(error)),
        };
        let (mut all, mut unreadable) = (Vec::new(), Vec::new());
        for entry in entries {
            let path = entry.map_err(wrap("list", &folder))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match read(&path) {
                    Ok(record) => all.push(record),
                    // It was settled meanwhile.
                    Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => unreadable.push(error),
                }
            }
        }
        tidy(state_dir);
        all.retain(|record: &Self| !record.worker.lives());
        Ok((all, unreadable))
    }
}

fn read(path: &Path) -> Result<Record, RecordError> {
    let text = fs::read(path).map_err(wrap("read", path))?;
    serde_json::from_slice(&text).map_err(|error| wrap("read", path)(error.into()))
}

/// A target's permit to hold what it builds; dropped, it is there no more.
#[derive(Debug)]
pub struct Permit<'a> {
    state_dir: &'a StateDir,
    path: PathBuf,
}

impl<'a> Permit<'a> {
    fn path(state_dir: &StateDir, id: &Id) -> PathBuf {
        file(state_dir, id, "building")
    }

    /// A new one.
    ///
    /// # Errors
    /// [`RecordError`] where there is one by this id already.
    pub fn give(state_dir: &'a StateDir, id: &Id) -> Result<Self, RecordError> {
        let path = Self::path(state_dir, id);
        make_in(state_dir, |_| File::create_new(&path)).map_err(wrap("make", &path))?;
        Ok(Self { state_dir, path })
    }

    /// Its file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.path
    }

    /// Takes that of a hand-over away, whoever has it.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn revoke(state_dir: &StateDir, id: &Id) -> Result<(), RecordError> {
        remove(state_dir, &Self::path(state_dir, id))
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove(self.state_dir, &self.path) {
            tracing::error!(%error, "a permit stays");
        }
    }
}
