//! Lets the tree's clocks go on from where they stood: takes all processes into time namespaces of their own.
//!
//! As late as can be, for the clocks go on from here: behind all that takes long, and before there are threads, as only a
//! process of one thread may enter. Memory stays as it is, but for the kernel's own page of clocks ([vvar]).

use super::{RestoreError, tree::World};
use floe_image::{
    Image,
    record::{ClocksRecord, NamespaceContents, ProcessRecord},
};
use floe_resources::ns::{make_namespace, set_clocks};
use floe_sys::namespace::Kind;
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

/// Whether processes share memory: one that does may enter no time namespace, but is born into its parent's. Or whether they
/// are born into user namespaces, without privileges in the root's. Then the clocks go on from before the tree was made.
pub fn must_come_early(image: &Image) -> bool {
    let mut processes = image.processes().iter();
    let mut below = image.sandbox().pid_namespaces.iter();
    processes.any(|process| process.shared & libc::CLONE_VM as u32 != 0)
        || below.any(|namespace| namespace.owner != 0 && !namespace.ended)
}

fn failed(source: io::Error) -> RestoreError {
    RestoreError::System {
        action: "make a time namespace".to_owned(),
        source,
    }
}

/// Makes the time namespace of the tree's root and takes every process there is into it, the later small init too.
pub fn set(image: &Image, world: &mut World<'_>) -> Result<(), RestoreError> {
    let contents = NamespaceContents::Time(image.sandbox().clocks);
    let namespace = make_namespace(&contents, None, &[]).map_err(failed)?;
    for puppet in world.puppets.values() {
        world.enter(puppet, (Kind::Time, namespace.as_fd()))?;
    }
    let seed = world.seed()?.tid().to_string();
    world.namespaces.known.add_own(Kind::Time, &seed).map_err(failed)
}

/// Makes the time namespaces that not all processes are in, and has these enter, when all are in the root's.
///
/// A process that has made one for its children and is not in it (unshare(2)) makes it again, as nobody else could put its
/// children there without itself. It may be in one that another such process has made.
pub fn set_others(image: &Image, world: &mut World<'_>) -> Result<(), RestoreError> {
    let records = &image.sandbox().namespaces;
    let mut makers: HashMap<u32, &ProcessRecord> = HashMap::new();
    let living = image
        .processes()
        .iter()
        .filter(|record| world.puppets.contains_key(&record.pid.0));
    let own = |record: &ProcessRecord| record.threads.first().map_or(0, |leader| leader.namespaces.time);
    for record in living.clone().filter(|record| own(record) != record.time_of_children) {
        makers.insert(record.time_of_children, record);
    }
    let mut made: HashMap<u32, OwnedFd> = HashMap::new();
    let mut waiting: Vec<(u32, ClocksRecord)> = (1..)
        .zip(records)
        .filter_map(|(number, record)| match record.contents {
            NamespaceContents::Time(clocks) => Some((number, clocks)),
            _ => None,
        })
        .collect();
    while !waiting.is_empty() {
        let before = waiting.len();
        let mut later = Vec::new();
        for (number, clocks) in waiting {
            let file = match makers.get(&number) {
                None => {
                    let owner = world.namespaces.known.made(records[number as usize - 1].owner);
                    make_namespace(&NamespaceContents::Time(clocks), owner, &[]).map_err(failed)?
                }
                Some(maker) => {
                    let puppet = world.puppet(maker.pid.0)?;
                    match (own(maker), made.get(&own(maker))) {
                        (0, _) => {}
                        (_, Some(inside)) => world.enter(puppet, (Kind::Time, inside.as_fd()))?,
                        (_, None) => {
                            later.push((number, clocks));
                            continue;
                        }
                    }
                    let flags = [Kind::Time.flag() as u64];
                    world.simple(maker.pid.0, "make a time namespace", libc::SYS_unshare, &flags)?;
                    let directory = PathBuf::from(format!("/proc/{}", puppet.tid()));
                    set_clocks(&directory, clocks).map_err(failed)?;
                    File::open(directory.join("ns/time_for_children"))
                        .map_err(failed)?
                        .into()
                }
            };
            made.insert(number, file);
        }
        if later.len() == before {
            return Err(RestoreError::Inconsistent(
                "processes wait for each other's time namespaces".to_owned(),
            ));
        }
        waiting = later;
    }
    for record in living.filter(|record| own(record) != 0 && own(record) == record.time_of_children) {
        let lacking = || RestoreError::Inconsistent(format!("time namespace {} can't be made", own(record)));
        let file = made.get(&own(record)).ok_or_else(lacking)?;
        world.enter(world.puppet(record.pid.0)?, (Kind::Time, file.as_fd()))?;
    }
    for (number, file) in made {
        world.namespaces.known.add(number, file);
    }
    Ok(())
}
