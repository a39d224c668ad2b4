//! The tree's cgroups: rehearsed before anything is made, then made below those of the new sandbox.

use super::{RestoreError, preflight::Obstacle, tree::World};
use floe_cgroup::Hierarchies;
use floe_image::{Image, record::ProcessRecord};
use floe_resources::cgroup::{CgroupPlan, Made, rehearse};
use floe_sandbox::Launch;
use floe_sys::Pid;
use std::collections::HashMap;

/// Hierarchies of this host, where the image has something to put there.
pub fn hierarchies(image: &Image) -> Result<Hierarchies, RestoreError> {
    if image.sandbox().cgroups.is_empty() {
        return Ok(Hierarchies::default());
    }
    Hierarchies::probe().map_err(|source| RestoreError::System {
        action: "read /proc/self/mountinfo".to_owned(),
        source,
    })
}

/// What stands in the way.
pub fn obstacles(image: &Image) -> Result<impl Iterator<Item = Obstacle>, RestoreError> {
    let hierarchies = hierarchies(image)?;
    let plan = CgroupPlan::new(&image.sandbox().cgroups, &hierarchies);
    let found = rehearse(&plan, &hierarchies)?;
    Ok(found.into_iter().map(|(object, reason)| Obstacle { object, reason }))
}

/// Makes them, and moves the first process of the sandbox, which forks all others, to its place.
pub fn make<'a>(
    (image, plan, hierarchies): (&Image, &'a CgroupPlan<'a>, &Hierarchies),
    launch: &Launch,
) -> Result<Made<'a>, RestoreError> {
    let made = Made::new(plan, launch.cgroups(), hierarchies)?;
    made.folders()?;
    // Where PID 1 is none of the tree's, it is where that one's root is.
    if let Some(root) = image.processes().iter().find(|record| record.ppid.0 == 0) {
        made.place(root, launch.pid1())?;
    }
    made.open_up()?;
    Ok(made)
}

/// Moves all processes that are not yet there.
pub fn place_all(image: &Image, world: &World<'_>) -> Result<(), RestoreError> {
    image.processes().iter().try_for_each(|record| world.place(record))
}

/// Moves threads, by their ids, to their places.
pub fn place_threads(
    made: &Made<'_>,
    processes: &[ProcessRecord],
    threads: &HashMap<i32, Pid>,
    world: &World<'_>,
) -> Result<HashMap<i32, Pid>, RestoreError> {
    let mut hosts: HashMap<i32, Pid> = world.host_pids().into_iter().collect();
    hosts.extend(threads);
    for record in processes {
        made.place_threads(record, &hosts)?;
    }
    Ok(hosts)
}
