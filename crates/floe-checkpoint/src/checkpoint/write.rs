//! Writes the records and pages of an inspected tree.

use super::{inspect::Inspected, seize::HeldTree};
use crate::stage::{Control, StageError};
use floe_image::{ImageWriter, Summary, WriteError, WriteOptions, record::PageMapRecord};
use floe_resources::mm::{self, PagesError};
use floe_sys::Pid;
use std::{
    collections::{HashMap, HashSet},
    io::Write,
};

/// An image that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteStageError {
    /// The container.
    #[error("write the image")]
    Write(#[from] WriteError),
    /// The pages.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// Told to stop.
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// Writes everything to `sink`.
pub fn write(
    held: &HeldTree,
    inspected: &Inspected,
    sink: Box<dyn Write + Send>,
    level: i32,
    control: &Control<'_>,
) -> Result<Summary, WriteStageError> {
    let written = write_all(held, inspected, sink, level, control);
    // A sink that gave up because floe was told to stop is no failure of the sink.
    written.or_else(|error| {
        control.check("pages")?;
        Err(error)
    })
}

fn write_all(
    held: &HeldTree,
    inspected: &Inspected,
    sink: Box<dyn Write + Send>,
    level: i32,
    control: &Control<'_>,
) -> Result<Summary, WriteStageError> {
    let mut writer = ImageWriter::start(
        sink,
        &WriteOptions {
            level,
            ..WriteOptions::default()
        },
    )?;
    write_records(inspected, &mut writer)?;
    control.enter("pages")?;
    let mut stored = 0;
    for source in &inspected.contents.sources {
        control.check("pages")?;
        let map = mm::dump_content(source, &mut writer)?;
        stored += pages(&map);
        control.observer.pages(stored * 4096, inspected.bytes);
        writer.record(&map)?;
    }
    let own_memory: HashSet<i32> = inspected.spaces.iter().map(|space| space.pid.0).collect();
    let mut shared = mm::SharedPages::default();
    let hosts: HashMap<i32, Pid> = held.tree.living().map(|found| (found.ns_pid, found.task())).collect();
    for found in held.tree.living() {
        control.check("pages")?;
        if !own_memory.contains(&found.ns_pid) {
            // It has its parent's.
            continue;
        }
        let process = held.process(found);
        let parent = hosts.get(&found.ns_ppid).copied();
        let map = mm::dump_process_pages(&process, parent, &mut shared, &mut writer)?;
        stored += pages(&map);
        control.observer.pages(stored * 4096, inspected.bytes);
        writer.record(&map)?;
    }
    let (mut sink, summary) = writer.finish()?;
    sink.flush().map_err(WriteError::from)?;
    Ok(summary)
}

fn pages(map: &PageMapRecord) -> u64 {
    map.runs.iter().map(|run| run.pages).sum()
}

fn write_records(inspected: &Inspected, writer: &mut ImageWriter) -> Result<(), WriteError> {
    writer.record(&inspected.header)?;
    writer.record(&inspected.sandbox)?;
    let mounts = &inspected.mounts;
    mounts.namespaces.iter().try_for_each(|record| writer.record(record))?;
    mounts.filesystems.iter().try_for_each(|record| writer.record(record))?;
    inspected.networks.iter().try_for_each(|record| writer.record(record))?;
    inspected
        .processes
        .iter()
        .try_for_each(|record| writer.record(record))?;
    inspected.spaces.iter().try_for_each(|record| writer.record(record))?;
    inspected
        .contents
        .mapped
        .iter()
        .try_for_each(|record| writer.record(record))?;
    inspected
        .contents
        .shmems
        .iter()
        .try_for_each(|record| writer.record(record))?;
    inspected
        .contents
        .ghosts
        .iter()
        .try_for_each(|record| writer.record(record))?;
    inspected
        .files
        .files
        .iter()
        .try_for_each(|record| writer.record(record))?;
    inspected
        .files
        .objects
        .iter()
        .try_for_each(|record| writer.record(record))?;
    inspected
        .files
        .tables
        .iter()
        .try_for_each(|record| writer.record(record))
}
