//! Freezing as a guard.

use crate::{Cgroup, CgroupError, Kind, folder, watcher::Watcher};
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
    /// Those below it that were frozen by themselves.
    below: Vec<Cgroup>,
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

    /// Those below it that were told to freeze by themselves: their tasks stay frozen when it thaws.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn frozen_below(&self) -> Result<Vec<Self>, CgroupError> {
        let file = match self.kind() {
            Kind::V2 => "cgroup.freeze",
            Kind::V1Freezer => "freezer.self_freezing",
        };
        let mut found = Vec::new();
        for path in folder::below(self.path())? {
            // One that is gone meanwhile holds nobody.
            if std::fs::read_to_string(path.join(file)).is_ok_and(|text| text.trim() == "1") {
                found.push(self.beside(path));
            }
        }
        Ok(found)
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
        let below = self.frozen_below()?;
        let watcher = Watcher::start(|| {
            for group in &below {
                drop(group.freeze().map(Frozen::keep));
            }
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
            below: self.frozen_below()?,
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

    /// Thaws for a while, also those below that were frozen by themselves: what was frozen before is frozen again when the
    /// guard that is then returned is dropped, or floe dies.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn lift(mut self) -> Result<Option<Lifted>, CgroupError> {
        // Before the thaw, so that they are frozen again whatever fails.
        let own = self.was_frozen.then(|| self.group.clone());
        let lifted = Lifted {
            groups: own.into_iter().chain(std::mem::take(&mut self.below)).collect(),
            whole: self.was_frozen,
            watcher: self.watcher.take(),
        };
        self.group.thaw()?;
        self.armed = false;
        for group in &lifted.groups {
            group.thaw()?;
        }
        if lifted.groups.is_empty() {
            lifted.forget();
            return Ok(None);
        }
        Ok(Some(lifted))
    }

    /// Leaves it frozen.
    pub fn keep(mut self) {
        self.armed = false;
        if let Some(watcher) = self.watcher.take() {
            watcher.dismiss();
        }
    }
}

/// Cgroups that are thawed for a while.
#[derive(Debug)]
pub struct Lifted {
    groups: Vec<Cgroup>,
    whole: bool,
    watcher: Option<Watcher>,
}

impl Lifted {
    /// Which.
    #[must_use]
    pub fn groups(&self) -> &[Cgroup] {
        &self.groups
    }

    /// Whether the whole tree was frozen, and not only cgroups below.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Leaves them thawed.
    pub fn forget(mut self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.dismiss();
        }
    }

    /// Freezes them again.
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
        let frozen: Vec<_> = self
            .groups
            .iter()
            .map(|group| group.freeze().map(Frozen::keep))
            .collect();
        watcher.dismiss();
        frozen.into_iter().collect()
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
