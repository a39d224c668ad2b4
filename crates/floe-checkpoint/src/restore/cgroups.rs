//! The tree's cgroups: rehearsed before anything is made, then made below those of the new sandbox.

use super::{RestoreError, preflight::Obstacle, tree::World};
use floe_cgroup::{Cgroups, Hierarchies};
use floe_image::{
    Image,
    record::{CgroupPlace, MountSource, NamespaceContents, ProcessRecord},
};
use floe_resources::{
    cgroup::{CgroupPlan, Made, rehearse},
    ns::{
        make_namespace,
        mounts::{CgroupView, CgroupViews},
    },
};
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

/// Makes them, and moves the first process of the sandbox, which forks all others, to its place. None of them hands on
/// controllers yet.
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
    Ok(made)
}

/// Where on this host hierarchies are mounted of which the image's mounts show something.
pub fn mounted(image: &Image) -> Result<CgroupViews, RestoreError> {
    let hierarchies = hierarchies(image)?;
    let point = |place: &CgroupPlace| match place.hierarchy.split(',').next() {
        None | Some("") => hierarchies.v2.clone(),
        Some(first) => hierarchies.v1_with(first).map(|hierarchy| hierarchy.point.clone()),
    };
    let point = |place: &CgroupPlace| point(place).map(CgroupView::At);
    Ok(shown(image)
        .filter_map(|place| Some((place.clone(), point(place)?)))
        .collect())
}

/// Cgroup namespaces that begin at the cgroups which the image's mounts show: what is mounted there shows them.
pub fn views(image: &Image, made: &Made<'_>, cgroups: &Cgroups) -> Result<CgroupViews, RestoreError> {
    let mut all = CgroupViews::new();
    for place in shown(image) {
        if !all.contains_key(place) {
            let places = [place.clone()];
            let entrances = made.entrances(cgroups, &places)?;
            let contents = NamespaceContents::Cgroup(places.to_vec());
            let namespace = make_namespace(&contents, None, &entrances).map_err(|source| RestoreError::System {
                action: "make a cgroup namespace for a mount".to_owned(),
                source,
            })?;
            all.insert(place.clone(), CgroupView::Inside(namespace));
        }
    }
    Ok(all)
}

fn shown(image: &Image) -> impl Iterator<Item = &CgroupPlace> {
    let mounts = image.mount_namespaces().iter().flat_map(|record| &record.mounts);
    mounts.filter_map(|mount| match &mount.source {
        MountSource::Cgroup { place, .. } => Some(place),
        _ => None,
    })
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
