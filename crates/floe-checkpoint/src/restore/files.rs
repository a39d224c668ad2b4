//! Opens every file once and hands it to all that had it, in waves, because nobody may raise floe's own limit on open
//! files.

use super::{RestoreError, contents::MadeContents, tree::World};
use floe_image::{
    Image,
    record::{IN_FLIGHT, OpenFileRecord, TerminalLink},
};
use floe_resources::{
    file::{
        Holders, OpenContext, Opened, Outside, Stash, TablePlan, Unsent, ask_directories, deliver, ended_tasks,
        is_late, is_view, kind_of, place_pidfds, place_wave, say_anew, set_notices, set_signals, take_locks,
        terminal::MadeTerminals,
    },
    ns::Roots,
};
use floe_sys::{
    Pid,
    descriptor::{pidfd_getfd, pidfd_of_task},
};
use floe_tracee::{Puppet, Script};
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

/// How many files floe holds open at once.
const WAVE: usize = 200;

/// Opens and places descriptors but the late ones; first sessions are settled, since /dev/tty depends on them. What is
/// returned must be taken care of when the tree is about to run.
pub fn open_all(
    (image, stash): (&Image, &Stash),
    world: &World<'_>,
    (made, terminals): (&MadeContents, MadeTerminals),
    console: &[OwnedFd; 3],
    (roots, outside): (&Roots, Outside<'_>),
) -> Result<Opened, RestoreError> {
    let sessions = settle_sessions(image, world, &terminals)?;
    let tasks = (&world.puppets, world.host_pids(), &world.namespaces.known);
    let mut context = OpenContext::new((roots, &world.channel), console, &made.ghosts, image, tasks, outside)?;
    context.set_terminals(terminals, sessions);
    context.make_queues(image)?;
    let early: Vec<_> = image.open_files().iter().filter(|record| !is_late(record)).collect();
    place_all(stash, world, &early, &mut context)?;
    Ok(context.finish()?)
}

/// Opens and places the late ones, when all tasks are there and in their namespaces.
pub fn open_late(
    (image, stash): (&Image, &Stash),
    world: &World<'_>,
    made: &MadeContents,
    console: &[OwnedFd; 3],
    (roots, outside): (&Roots, Outside<'_>),
) -> Result<(), RestoreError> {
    let tasks = (&world.puppets, world.host_pids(), &world.namespaces.known);
    let mut context = OpenContext::new((roots, &world.channel), console, &made.ghosts, image, tasks, outside)?;
    let helpers = world.make_ended(&ended_tasks(image.open_files())?)?;
    context.ended = helpers.iter().map(|(task, helper)| (*task, helper.process())).collect();
    let late: Vec<_> = image.open_files().iter().filter(|record| is_late(record)).collect();
    place_all(stash, world, &late, &mut context)?;
    world.end_all(helpers.into_values())
}

/// Has views of the kernel's state say what it is now; the tree stands complete and frozen.
pub fn refresh_views(image: &Image, hosts: &BTreeMap<i32, Pid>) -> Result<(), RestoreError> {
    let views = image.open_files().iter().filter(|record| is_view(record));
    for record in views {
        // Nobody can see those that are on their way.
        let tables = image.descriptor_tables().iter().filter(|table| table.pid != IN_FLIGHT);
        let mut places = tables.flat_map(|table| table.descriptors.iter().map(move |entry| (table.pid.0, entry)));
        let Some((pid, entry)) = places.find(|(_, entry)| entry.file == record.id) else {
            continue;
        };
        let lacking = || RestoreError::Inconsistent(format!("process {pid} is not there"));
        let action = || format!("fetch descriptor {} of process {pid}", entry.number);
        let host = *hosts.get(&pid).ok_or_else(lacking)?;
        let pidfd = pidfd_of_task(host).map_err(RestoreError::system(action()))?;
        let file = pidfd_getfd(pidfd.as_fd(), entry.number).map_err(RestoreError::system(action()))?;
        say_anew(record, &File::from(file))?;
    }
    Ok(())
}

fn place_all(
    stash: &Stash,
    world: &World<'_>,
    records: &[&OpenFileRecord],
    context: &mut OpenContext<'_>,
) -> Result<(), RestoreError> {
    for wave in records.chunks(WAVE) {
        let mut opened = HashMap::new();
        for record in wave {
            opened.insert(record.id, kind_of(record)?.open(record, context)?);
        }
        for table in stash.tables() {
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
    Ok(())
}

/// Connects files with each other, and with tasks: with threads, which are there by now, too. What waited in sockets and
/// was `unsent` so far is sent.
pub fn connect_all(
    image: &Image,
    world: &World<'_>,
    roots: &Roots,
    threads: &HashMap<i32, Pid>,
    (unsent, stash): (&mut Unsent, &Stash),
) -> Result<(), RestoreError> {
    let channel = (&world.channel, roots);
    let holders = Holders::new(
        stash.tables(),
        (&world.puppets, &world.numbering, &world.namespaces.known),
        channel,
        world.own_numbers(),
    );
    let known = world.host_pids();
    place_pidfds(image.open_files(), &holders, (|pid| known.contains_key(&pid), threads))?;
    deliver(unsent, image.open_files(), &holders)?;
    for record in image.open_files() {
        kind_of(record)?.connect(record, &holders, unsent)?;
    }
    take_locks(stash.besides(), &holders)?;
    let (flying, own): (Vec<_>, Vec<_>) = image.open_files().iter().partition(|record| stash.flies(record.id));
    set_signals(flying, &holders)?;
    for record in image.open_files() {
        kind_of(record)?.complete(record, &holders)?;
    }
    // A process loses its locks on a file, and is not told of a queue any more, with the first descriptor that it closes.
    stash.close(|pid| world.puppets.get(&pid.0))?;
    take_locks(stash.own(), &holders)?;
    ask_directories(stash.own(), &holders)?;
    set_signals(own, &holders)?;
    set_notices(image.sandbox(), image.open_files(), &holders)?;
    Ok(())
}

/// Sets the foreground groups of terminals, and takes the session's terminal from processes that have none. Returns the
/// leaders of the sessions that have one.
fn settle_sessions<'a>(
    image: &Image,
    world: &'a World<'_>,
    terminals: &MadeTerminals,
) -> Result<Vec<(Option<u32>, &'a Puppet)>, RestoreError> {
    let of_init = terminal_of_init(image);
    let of_leader = |sid: i32| match world.record(sid) {
        Some(leader) => leader.terminal.as_ref(),
        None => of_init.filter(|_| sid == 1),
    };
    let mut leaders = Vec::new();
    if let Some(link) = of_init {
        let init = world.seed()?;
        set_foreground(world, init, (terminals, link))?;
        leaders.push((link.pair, init));
    }
    for record in image.processes() {
        let Some(link) = of_leader(record.sid.0) else { continue };
        let is_leader = record.pid == record.sid;
        let Some(puppet) = world
            .puppets
            .get(&record.pid.0)
            .filter(|_| is_leader || record.no_terminal)
        else {
            continue;
        };
        if is_leader {
            set_foreground(world, puppet, (terminals, link))?;
        } else {
            leave_terminal(world, puppet, (terminals, link))?;
        }
        if is_leader {
            leaders.push((link.pair, puppet));
        }
    }
    Ok(leaders)
}

/// Says which group of the session whose leader this is has its terminal.
fn set_foreground(
    world: &World<'_>,
    leader: &Puppet,
    (terminals, link): (&MadeTerminals, &TerminalLink),
) -> Result<(), RestoreError> {
    if link.foreground.0 <= 0 {
        return Ok(());
    }
    let terminal = [terminals.slave(link.pair)?];
    let number = world.channel.give(&mut Script::new(leader), &terminal)?[0] as u64;
    let mut batch = leader.batch();
    let group = world.called(leader.process(), link.foreground.0)?;
    let group = batch.data(&group.to_ne_bytes());
    let arguments = [number, libc::TIOCSPGRP, group];
    batch.call("set the foreground group", libc::SYS_ioctl, &arguments);
    batch.call("close the terminal", libc::SYS_close, &[number]);
    Ok(leader.run(&mut batch)?)
}

fn leave_terminal(
    world: &World<'_>,
    puppet: &Puppet,
    (terminals, link): (&MadeTerminals, &TerminalLink),
) -> Result<(), RestoreError> {
    let terminal = [terminals.slave(link.pair)?];
    let number = world.channel.give(&mut Script::new(puppet), &terminal)?[0] as u64;
    let mut batch = puppet.batch();
    batch.call("leave the terminal", libc::SYS_ioctl, &[number, libc::TIOCNOTTY]);
    batch.call("close the terminal", libc::SYS_close, &[number]);
    Ok(puppet.run(&mut batch)?)
}

/// The terminal of PID 1's session where the tree had no PID 1: its root tells of it.
pub fn terminal_of_init(image: &Image) -> Option<&TerminalLink> {
    let mut roots = image.processes().iter().filter(|record| record.ppid.0 == 0);
    let root = roots.find(|root| root.sid.0 == 1 && root.pid.0 != 1)?;
    root.terminal.as_ref()
}
