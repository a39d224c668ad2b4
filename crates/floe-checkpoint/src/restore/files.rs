//! Opens every file once and hands it to all that had it, in waves, because nobody may raise floe's own limit on open
//! files.

use super::{RestoreError, contents::MadeContents, tree::World};
use floe_image::Image;
use floe_resources::file::{
    Holders, OpenContext, Opened, TablePlan, TcpMode, in_order, kind_of, place_pidfds, place_wave, set_notices,
    set_signals, take_locks,
};
use floe_sys::Pid;
use floe_tracee::{Puppet, Script};
use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// How many files floe holds open at once.
const WAVE: usize = 200;

/// Opens and places all descriptors; first the terminal is given to its sessions, since /dev/tty depends on it. What
/// is returned must be taken care of when the tree is about to run.
pub fn open_all(
    image: &Image,
    world: &mut World<'_>,
    made: &MadeContents,
    console: &[OwnedFd; 3],
    (root, tcp): (BorrowedFd<'_>, TcpMode),
) -> Result<Opened, RestoreError> {
    let holder = give_terminals(image, world, console)?;
    let holder: Option<&Puppet> = holder.and_then(|pid| world.puppets.get(&pid));
    let tasks = (&world.puppets, holder, world.host_pids());
    let mut context = OpenContext::new(root, console, &made.ghosts, image, tasks, tcp);
    context.make_queues(world.seed()?.tid(), image)?;
    for wave in in_order(image.open_files()).chunks(WAVE) {
        let mut opened = HashMap::new();
        for record in wave {
            opened.insert(record.id, kind_of(record)?.open(record, &mut context)?);
        }
        for table in image.descriptor_tables() {
            let mut plan = TablePlan::default();
            for descriptor in &table.descriptors {
                if let Some(file) = opened.get(&descriptor.file) {
                    plan.entries
                        .push((descriptor.number, file.as_fd(), descriptor.close_on_exec));
                }
            }
            if plan.entries.is_empty() {
                continue;
            }
            let lacking = || RestoreError::Inconsistent(format!("process {} is not there", table.pid));
            place_wave(
                world.puppets.get(&table.pid.0).ok_or_else(lacking)?,
                &world.channel,
                &plan,
            )?;
        }
    }
    Ok(context.finish())
}

/// Connects files with each other, and with tasks: with threads, which are there by now, too.
pub fn connect_all(
    image: &Image,
    world: &World<'_>,
    root: BorrowedFd<'_>,
    threads: &HashMap<i32, Pid>,
) -> Result<(), RestoreError> {
    let tables = image.descriptor_tables();
    let holders = Holders::new(tables, &world.puppets, (&world.channel, root), world.own_numbers());
    let known = world.host_pids();
    place_pidfds(image.open_files(), &holders, (|pid| known.contains_key(&pid), threads))?;
    for record in image.open_files() {
        kind_of(record)?.connect(record, &holders)?;
    }
    take_locks(tables, &holders)?;
    set_signals(image.open_files(), &holders)?;
    for record in image.open_files() {
        kind_of(record)?.complete(record, &holders)?;
    }
    set_notices(&image.sandbox().ipc_objects.posix, image.open_files(), &holders)?;
    Ok(())
}

/// Makes the sandbox's terminal the controlling one of the sessions that had it; returns one of their leaders.
fn give_terminals(image: &Image, world: &World<'_>, console: &[OwnedFd; 3]) -> Result<Option<i32>, RestoreError> {
    let mut holder = None;
    for record in image.processes().iter().filter(|record| record.terminal.is_some()) {
        let lacking = || RestoreError::Inconsistent(format!("process {} is not there", record.pid));
        let puppet = world.puppets.get(&record.pid.0).ok_or_else(lacking)?;
        let number = world.channel.give(&mut Script::new(puppet), &[console[0].as_fd()])?[0] as u64;
        let mut batch = puppet.batch();
        batch.call("take the terminal", libc::SYS_ioctl, &[number, libc::TIOCSCTTY, 1]);
        if let Some(link) = &record.terminal
            && link.foreground.0 > 0
        {
            let group = batch.data(&link.foreground.0.to_ne_bytes());
            batch.call(
                "set the foreground group",
                libc::SYS_ioctl,
                &[number, libc::TIOCSPGRP, group],
            );
        }
        batch.call("close the terminal", libc::SYS_close, &[number]);
        puppet.run(&mut batch)?;
        holder = Some(record.pid.0);
    }
    Ok(holder)
}
