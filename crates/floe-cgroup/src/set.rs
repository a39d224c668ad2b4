//! All cgroups of one sandbox: the one that freezes it, and one in each further hierarchy whose controllers it needs.
//!
//! Version 1 has a hierarchy for each controller, so that a limit there takes a directory of its own. Controllers of version
//! 2 are switched on from the top down to the sandbox's one.

use crate::{
    Cgroup, CgroupError, Entrance, Hierarchies, Hierarchy, Kind,
    folder::{self, PARENT},
    group::{self, wrap},
};
use floe_sys::Pid;
use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where the cgroups of a sandbox are to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// Hierarchies of version 1.
    v1: Vec<Hierarchy>,
    /// Controllers of version 2.
    v2: Vec<String>,
}

impl Layout {
    /// One that has the controllers `wanted`, or named hierarchies (`name=` and the name).
    ///
    /// # Errors
    /// [`CgroupError::NoController`] where the caller can't have one.
    pub fn with(hierarchies: &Hierarchies, wanted: &[String]) -> Result<Self, CgroupError> {
        let mut found = Self::default();
        for controller in wanted {
            let lacking = |reason: String| CgroupError::NoController {
                controller: controller.clone(),
                reason,
            };
            match hierarchies.v1_with(controller) {
                Some(hierarchy) => {
                    let parent = hierarchy.point.join(PARENT);
                    if !may_make_in(&parent) {
                        return Err(lacking(format!(
                            "it is in version 1, at {}, where this user may make no cgroup; an ordinary user needs version 2, \
                             and a cgroup of it that was delegated",
                            hierarchy.point.display()
                        )));
                    }
                    if !found.v1.contains(hierarchy) {
                        found.v1.push(hierarchy.clone());
                    }
                }
                None => {
                    v2_parent(hierarchies, controller).map_err(lacking)?;
                    found.v2.push(controller.clone());
                }
            }
        }
        Ok(found)
    }

    /// Where that is, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        let v2 = (!self.v2.is_empty()).then(|| "version 2".to_owned());
        let v1 = self
            .v1
            .iter()
            .map(|hierarchy| format!("version 1 at {}", hierarchy.point.display()));
        v1.chain(v2).collect::<Vec<_>>().join(", ")
    }
}

/// Whether the caller may make a directory, or one in it where it exists.
fn may_make_in(path: &Path) -> bool {
    for place in path.ancestors() {
        match access(place, AccessFlags::W_OK) {
            // It may have been there a moment ago: who ends the last sandbox removes what held them all.
            Err(Errno::ENOENT) => {}
            allowed => return allowed.is_ok(),
        }
    }
    false
}

/// Where version 2 can hand on a controller; why nowhere.
fn v2_parent(hierarchies: &Hierarchies, controller: &str) -> Result<PathBuf, String> {
    let Some((Kind::V2, root)) = hierarchies.preferred() else {
        return Err("it is in no version 1 hierarchy that is mounted, and version 2 is not mounted".to_owned());
    };
    let parents = group::parents(hierarchies).map_err(|error| error.to_string())?;
    let lists = |directory: &Path, file: &str| {
        let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
        text.split_whitespace().any(|known| known == controller)
    };
    if !lists(root, "cgroup.controllers") {
        return Err(format!(
            "it is in no version 1 hierarchy that is mounted, and not in cgroup.controllers of {}",
            root.display()
        ));
    }
    let fits = |parent: &&PathBuf| {
        let directory = if parent.ends_with(PARENT) { root } else { parent };
        let hands_on = lists(directory, "cgroup.subtree_control");
        let is_empty = directory == root || folder::members(directory).is_ok_and(|members| members.is_empty());
        let control = directory.join("cgroup.subtree_control");
        let may = access(&control, AccessFlags::W_OK).is_ok() && is_empty;
        may_make_in(parent) && lists(directory, "cgroup.controllers") && (hands_on || may)
    };
    parents.iter().find(fits).cloned().ok_or_else(|| {
        "an ordinary user needs a cgroup of version 2 that was delegated with it and whose own processes are in cgroups below it"
            .to_owned()
    })
}

/// The cgroups of one sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// The one that freezes it, where it has one.
    pub freezer: Option<Cgroup>,
    /// Directories in further hierarchies, all of version 1.
    pub further: Vec<PathBuf>,
}

impl Cgroups {
    /// Makes those of the sandbox `name`.
    ///
    /// # Errors
    /// [`CgroupError`]; nothing is left then.
    pub fn create(hierarchies: &Hierarchies, layout: &Layout, name: &str) -> Result<Self, CgroupError> {
        let mut made = Self::default();
        let done = made.fill(hierarchies, layout, name);
        match done {
            Ok(()) => Ok(made),
            Err(error) => {
                if let Err(error) = made.remove() {
                    tracing::error!(%error, "a cgroup stays");
                }
                Err(error)
            }
        }
    }

    fn fill(&mut self, hierarchies: &Hierarchies, layout: &Layout, name: &str) -> Result<(), CgroupError> {
        self.freezer = match layout.v2.first() {
            None => Cgroup::create(hierarchies, name)?,
            Some(first) => {
                let lacking = |reason| CgroupError::NoController {
                    controller: first.clone(),
                    reason,
                };
                let parent = v2_parent(hierarchies, first).map_err(lacking)?;
                Some(Cgroup::open(&folder::create_below(&parent, name, &layout.v2)?)?)
            }
        };
        let freezer = self.freezer.as_ref().map(|freezer| freezer.path().to_owned());
        for hierarchy in &layout.v1 {
            let parent = hierarchy.point.join(PARENT);
            if freezer.as_ref().is_some_and(|freezer| freezer.starts_with(&parent)) {
                continue;
            }
            self.further.push(folder::create_below(&parent, name, &[])?);
            if hierarchy.controllers.iter().any(|controller| controller == "cpuset") {
                allow_all(&hierarchy.point, name)?;
            }
        }
        Ok(())
    }

    /// Those that the sandbox `name` may have left, where nobody noted them.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn left_by(hierarchies: &Hierarchies, name: &str) -> Result<Self, CgroupError> {
        let places = group::parents(hierarchies)?.into_iter().map(|parent| parent.join(name));
        let freezer = places
            .filter(|path| path.exists())
            .find_map(|path| Cgroup::open(&path).ok());
        let further = hierarchies
            .v1
            .iter()
            .map(|hierarchy| hierarchy.point.join(PARENT).join(name));
        let is_further = |path: &PathBuf| path.exists() && freezer.as_ref().is_none_or(|own| own.path() != path);
        Ok(Self {
            further: further.filter(is_further).collect(),
            freezer,
        })
    }

    /// All their directories.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let freezer = self.freezer.iter().map(Cgroup::path);
        freezer.chain(self.further.iter().map(PathBuf::as_path))
    }

    /// Moves a process, with all its threads, into those of version 1; into the other one tasks are born.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn add(&self, pid: Pid) -> Result<(), CgroupError> {
        if let Some(freezer) = self
            .freezer
            .as_ref()
            .filter(|freezer| freezer.kind() == Kind::V1Freezer)
        {
            freezer.add(pid)?;
        }
        for path in &self.further {
            let path = path.join("cgroup.procs");
            fs::write(&path, pid.to_string()).map_err(wrap("write", &path))?;
        }
        Ok(())
    }

    /// Ways into the cgroups that a process is in, those or ones below them.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn entrances_to(&self, process: Pid) -> Result<Vec<Entrance>, CgroupError> {
        let freezer = self.freezer.iter().map(|freezer| {
            let own = freezer.holding(process)?;
            own.as_ref().unwrap_or(freezer).entrance()
        });
        let further = self.further.iter().map(|path| {
            for directory in folder::below(path)? {
                if folder::members(&directory)?.contains(&process) {
                    return Entrance::to(&directory);
                }
            }
            Entrance::to(path)
        });
        freezer.chain(further).collect()
    }

    /// Ends every task in them, also frozen ones.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        self.freezer.as_ref().map_or(Ok(()), Cgroup::kill_all)
    }

    /// Removes them and all below them, once the last tasks have left.
    ///
    /// # Errors
    /// The first [`CgroupError`]; the others go all the same.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let removed: Vec<_> = self.paths().map(folder::remove_all).collect();
        removed.into_iter().collect()
    }
}

/// A new cpuset of version 1 has no processors and no memory, and takes no task.
fn allow_all(point: &Path, name: &str) -> Result<(), CgroupError> {
    let parent = point.join(PARENT);
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let from = point.join(file);
        let all = fs::read_to_string(&from).map_err(wrap("read", &from))?;
        for path in [parent.join(file), parent.join(name).join(file)] {
            let own = fs::read_to_string(&path).map_err(wrap("read", &path))?;
            if own.trim().is_empty() {
                fs::write(&path, all.trim()).map_err(wrap("write", &path))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_while_the_last_one_goes_finds_room() {
        let place = tempfile::tempdir().expect("a directory");
        let parent = place.path().join(PARENT);
        let come_and_go = |name: &str| {
            for _ in 0..500 {
                assert!(may_make_in(&parent), "{name}");
                let own = folder::create_below(&parent, name, &[]).expect("a cgroup");
                folder::remove_all(&own).expect("removed");
            }
        };
        std::thread::scope(|scope| {
            for name in ["one", "another", "third"] {
                scope.spawn(move || come_and_go(name));
            }
        });
    }
}
