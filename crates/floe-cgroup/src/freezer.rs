//! Freezing as a guard.

use crate::{Cgroup, CgroupError, Kind, watcher::Watcher};
use std::time::{Duration, Instant};

/// How long tasks may take to freeze.
const LIMIT: Duration = Duration::from_secs(10);
/// How often the state is looked at: freezing takes some hundred microseconds.
const STEP: Duration = Duration::from_micros(100);

/// A frozen cgroup. Dropping it thaws, unless it was frozen before.
#[derive(Debug)]
pub struct Frozen<'a> {
    group: &'a Cgroup,
    was_frozen: bool,
    watcher: Option<Watcher>,
    armed: bool,
}

impl Cgroup {
    /// Whether all its tasks are frozen.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        match self.kind() {
            Kind::V2 => Ok(self.read("cgroup.events")?.lines().any(|line| line == "frozen 1")),
            Kind::V1Freezer => Ok(self.read("freezer.state")?.trim() == "FROZEN"),
        }
    }

    fn is_told_to_freeze(&self) -> Result<bool, CgroupError> {
        match self.kind() {
            Kind::V2 => Ok(self.read("cgroup.freeze")?.trim() == "1"),
            Kind::V1Freezer => Ok(self.read("freezer.state")?.trim() != "THAWED"),
        }
    }

    pub(crate) fn thaw_command(&self) -> (&'static str, &'static str) {
        match self.kind() {
            Kind::V2 => ("cgroup.freeze", "0"),
            Kind::V1Freezer => ("freezer.state", "THAWED"),
        }
    }

    /// Freezes all its tasks and waits until they are.
    ///
    /// # Errors
    /// [`CgroupError`]; it is thawed again then.
    pub fn freeze(&self) -> Result<Frozen<'_>, CgroupError> {
        self.freeze_with(None)
    }

    /// Freezes likewise; should floe die before the guard is released, a watcher process thaws.
    ///
    /// Must be called while the process has one thread: it forks.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn freeze_guarded(&self) -> Result<Frozen<'_>, CgroupError> {
        let watcher = if self.is_told_to_freeze()? {
            None
        } else {
            Some(Watcher::start(self)?)
        };
        self.freeze_with(watcher)
    }

    fn freeze_with(&self, watcher: Option<Watcher>) -> Result<Frozen<'_>, CgroupError> {
        let frozen = Frozen {
            group: self,
            was_frozen: self.is_told_to_freeze()?,
            watcher,
            armed: true,
        };
        match self.kind() {
            Kind::V2 => self.write("cgroup.freeze", "1")?,
            Kind::V1Freezer => self.write("freezer.state", "FROZEN")?,
        }
        let started = Instant::now();
        while !self.is_frozen()? {
            if started.elapsed() > LIMIT {
                return Err(CgroupError::TimedOut {
                    path: self.path().to_owned(),
                    seconds: LIMIT.as_secs(),
                });
            }
            std::thread::sleep(STEP);
        }
        Ok(frozen)
    }

    /// Thaws all its tasks.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        let (file, text) = self.thaw_command();
        self.write(file, text)
    }
}

impl Frozen<'_> {
    /// Thaws, also where it was frozen before.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn thaw(mut self) -> Result<(), CgroupError> {
        self.armed = false;
        self.group.thaw()?;
        if let Some(watcher) = self.watcher.take() {
            watcher.dismiss();
        }
        Ok(())
    }

    /// Leaves it frozen.
    pub fn keep(mut self) {
        self.armed = false;
        if let Some(watcher) = self.watcher.take() {
            watcher.dismiss();
        }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if self.armed
            && !self.was_frozen
            && let Err(error) = self.group.thaw()
        {
            tracing::error!(%error, "could not thaw a cgroup; write 0 to its cgroup.freeze (THAWED to freezer.state)");
        }
        if let Some(watcher) = self.watcher.take() {
            watcher.dismiss();
        }
    }
}
