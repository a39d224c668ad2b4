//! Cgroups that can be made and frozen.

use super::{
    Finding, NONE, Probe,
    attempt::{Caller, Subject, words},
};
use floe_cgroup::{Cgroup, Hierarchies, Kind};
use std::error::Error;

pub(super) const PROBES: &[Probe] = &[Probe {
    name: "cgroup freezer",
    used_for: "floe freeze; checkpoint and restore stop a sandbox by its cgroup, without one task after task by ptrace",
    advice: "mount cgroup2; as an ordinary user, have a cgroup delegated (systemd-run --user --scope -p Delegate=yes)",
    used_by: super::ALL,
    needed_by: NONE,
    ask: freezer,
}];

/// A cgroup that is gone when it is dropped.
struct Passing(Cgroup);

impl Drop for Passing {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill_all().and_then(|()| self.0.remove()) {
            tracing::debug!(%error, "a cgroup stays");
        }
    }
}

fn freezer(_: &Caller) -> Finding {
    let hierarchies = match Hierarchies::probe() {
        Ok(hierarchies) => hierarchies,
        Err(error) => return Finding::No(words(&error)),
    };
    let Some((kind, path)) = hierarchies.preferred() else {
        return Finding::No("neither cgroup v2 nor the v1 freezer is mounted".to_owned());
    };
    let kind = match kind {
        Kind::V2 => "cgroup v2",
        Kind::V1Freezer => "the v1 freezer",
    };
    let place = format!("{kind} at {}", path.display());
    match try_freezing(&hierarchies) {
        Ok(()) => Finding::Yes(place),
        Err(error) => Finding::No(format!("{place}: {}", words(&*error))),
    }
}

fn try_freezing(hierarchies: &Hierarchies) -> Result<(), Box<dyn Error>> {
    let cgroup = Passing(
        Cgroup::create(hierarchies, &format!("check-{}", std::process::id()))?.ok_or("this user may make no cgroup")?,
    );
    let subject = Subject::start()?;
    cgroup.0.add(subject.0)?;
    let frozen = cgroup.0.freeze()?;
    drop(frozen);
    drop(subject);
    Ok(())
}
