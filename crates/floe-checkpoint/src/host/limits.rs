//! Cgroups that can be limited.

use super::{
    Finding, MAKING, NONE, Probe,
    attempt::{Caller, words},
};
use floe_cgroup::{CgroupError, Cgroups, Cpus, Hierarchies, Layout, Limits};

const ADVICE: &str = "mount a hierarchy that has the controller (cgroup2); as an ordinary user, have a cgroup of version 2 delegated, with no process in itself";

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "memory limit",
        used_for: "floe run --memory, --memory-swap",
        advice: ADVICE,
        used_by: MAKING,
        needed_by: NONE,
        ask: |_| {
            ask(Limits {
                memory: Some(64 << 20),
                ..Limits::default()
            })
        },
    },
    Probe {
        name: "processor limit",
        used_for: "floe run --cpus",
        advice: ADVICE,
        used_by: MAKING,
        needed_by: NONE,
        ask: |_| {
            ask(Limits {
                cpus: Cpus::new(1.0),
                ..Limits::default()
            })
        },
    },
    Probe {
        name: "task limit",
        used_for: "floe run --pids",
        advice: ADVICE,
        used_by: MAKING,
        needed_by: NONE,
        ask: |_: &Caller| {
            ask(Limits {
                pids: Some(64),
                ..Limits::default()
            })
        },
    },
];

/// Cgroups that are gone when this is dropped.
struct Passing(Cgroups);

impl Drop for Passing {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            tracing::debug!(%error, "a cgroup stays");
        }
    }
}

fn ask(limits: Limits) -> Finding {
    match attempt(&limits) {
        Ok(place) => Finding::Yes(place),
        Err(error) => Finding::No(words(&error)),
    }
}

/// Sets them on cgroups that nobody is in; tells where.
fn attempt(limits: &Limits) -> Result<String, CgroupError> {
    let hierarchies = Hierarchies::probe().map_err(|source| CgroupError::File {
        action: "read",
        path: "/proc/self/mountinfo".into(),
        source,
    })?;
    let layout = Layout::with(&hierarchies, &limits.controllers())?;
    let made = Passing(Cgroups::create(
        &hierarchies,
        &layout,
        &format!("check-{}", std::process::id()),
    )?);
    limits.set(&made.0)?;
    Ok(layout.describe())
}
