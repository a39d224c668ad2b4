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

    /// Freezes all its tasks and waits until they are.
    ///
    /// # Errors
    /// [`CgroupError`]; it is thawed again then.
    pub fn freeze(&self) -> Result<Frozen<'_>, CgroupError> {
        self.freeze_with(None, None)
    }

    /// Freezes likewise, but what fails is undone by `thaw`. Should floe die before the guard is released, a watcher
    /// process does that, or freezes again what was frozen before.
    ///
    /// Must be called while the process has one thread: it forks.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn freeze_guarded(&self, thaw: &dyn Fn(&Self)) -> Result<Frozen<'_>, CgroupError> {
        let was_frozen = self.is_told_to_freeze()?;
        let watcher = Watcher::start(|| {
            if was_frozen {
                // Nobody is left to be told of a failure.
                drop(self.freeze().map(Frozen::keep));
            } else {
                thaw(self);
            }
        });
        let watcher = watcher.map_err(|source| CgroupError::Watcher {
            path: self.path().to_owned(),
            source,
        })?;
        self.freeze_with(Some(watcher), Some(thaw))
    }

    fn freeze_with(&self, watcher: Option<Watcher>, thaw: Option<&dyn Fn(&Self)>) -> Result<Frozen<'_>, CgroupError> {
        let frozen = Frozen {
            group: self,
            was_frozen: self.is_told_to_freeze()?,
            watcher,
            armed: true,
        };
        self.tell_to_freeze()?;
        let started = Instant::now();
        while !self.is_frozen()? {
            if started.elapsed() > LIMIT {
                if let (Some(thaw), false) = (thaw, frozen.was_frozen) {
                    thaw(self);
                }
                return Err(CgroupError::TimedOut {
                    path: self.path().to_owned(),
                    seconds: LIMIT.as_secs(),
                });
            }
            std::thread::sleep(STEP);
            // Version 1 tells each task once, and one that just went to sleep may have missed it.
            if self.kind() == Kind::V1Freezer {
                self.tell_to_freeze()?;
            }
        }
        Ok(frozen)
    }

    fn tell_to_freeze(&self) -> Result<(), CgroupError> {
        match self.kind() {
            Kind::V2 => self.write("cgroup.freeze", "1"),
            Kind::V1Freezer => self.write("freezer.state", "FROZEN"),
        }
    }

    /// Thaws all its tasks.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        match self.kind() {
            Kind::V2 => self.write("cgroup.freeze", "0"),
            Kind::V1Freezer => self.write("freezer.state", "THAWED"),
        }
    }
}

impl Frozen<'_> {
    /// Whether it was frozen before.
    #[must_use]
    pub fn was_frozen(&self) -> bool {
        self.was_frozen
    }

    /// Thaws for a while: what was frozen before is frozen again when the guard that is then returned is dropped, or floe
    /// dies.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn lift(mut self) -> Result<Option<Lifted>, CgroupError> {
        self.group.thaw()?;
        self.armed = false;
        Ok(self.was_frozen.then(|| Lifted {
            group: self.group.clone(),
            watcher: self.watcher.take(),
        }))
    }

    /// Leaves it frozen.
    pub fn keep(mut self) {
        self.armed = false;
        if let Some(watcher) = self.watcher.take() {
            watcher.dismiss();
        }
    }
}

/// A cgroup that is thawed for a while.
#[derive(Debug)]
pub struct Lifted {
    group: Cgroup,
    watcher: Option<Watcher>,
}

impl Lifted {
    /// Leaves it thawed.
    pub fn forget(mut self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.dismiss();
        }
    }

    /// Freezes it again.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn freeze_again(mut self) -> Result<(), CgroupError> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<(), CgroupError> {
        let Some(watcher) = self.watcher.take() else {
            return Ok(());
        };
        let frozen = self.group.freeze().map(Frozen::keep);
        watcher.dismiss();
        frozen
    }
}

impl Drop for Lifted {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            tracing::error!(%error, "could not freeze again a cgroup that was frozen");
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
