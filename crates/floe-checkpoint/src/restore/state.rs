//! Gives every process its threads and every thread its own state, and takes floe's traces out of it.

use super::{RestoreError, task_error, tree::World};
use floe_image::{
    Image,
    record::{ConsoleRecord, ProcessRecord, ProcessState, ThreadRecord, VmaSource},
};
use floe_resources::mm;
use floe_resources::task::{
    RestoreError as TaskError, SeedState, apply_outside, continue_sleep, finish_thread, queue_signals,
    restore_credentials, restore_process, restore_thread,
};
use floe_sys::{memory::MemoryFile, procfs::Mapping};
use floe_tracee::{Puppet, Script, Stopped, call_instruction};
use std::os::fd::{AsRawFd, OwnedFd};

/// No vDSO is longer, by far.
const VDSO_BYTES: u64 = 1 << 20;

const THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// Completes all processes; returns their threads, which are themselves again and only wait to be let go.
pub fn complete(
    image: &Image,
    world: &mut World<'_>,
    base: &SeedState,
    console: &[OwnedFd; 3],
) -> Result<Vec<Stopped>, RestoreError> {
    let mut done = Vec::new();
    for record in image.processes() {
        if matches!(record.state, ProcessState::Zombie { .. }) {
            continue;
        }
        let threads = make_threads(world, record)?;
        let leader = &world.puppets[&record.pid.0];
        settle_memory(image, leader, record)?;
        let all: Vec<&Puppet> = std::iter::once(leader).chain(&threads).collect();
        for (puppet, thread) in all.iter().zip(&record.threads) {
            restore_task(world, puppet, record, thread, base).map_err(|e| task_error(thread.tid.0, e))?;
        }
        let sleep = |(puppet, thread): (&&Puppet, &ThreadRecord)| {
            continue_sleep(puppet, thread).map_err(|e| task_error(thread.tid.0, e))
        };
        let registers = all
            .iter()
            .zip(&record.threads)
            .map(sleep)
            .collect::<Result<Vec<_>, _>>()?;
        // Signals once their actions are set, which would flush those that are ignored. The leader last: it limits what
        // all of them can have pending.
        for (puppet, thread) in all.iter().zip(&record.threads).rev() {
            queue_signals(puppet, record, thread).map_err(|e| task_error(thread.tid.0, e))?;
        }
        leave(image, leader, record)?;
        for ((puppet, thread), registers) in all.iter().zip(&record.threads).zip(&registers) {
            finish_thread(puppet, thread, registers, base).map_err(|e| task_error(thread.tid.0, e))?;
        }
        done.extend(threads.into_iter().map(Puppet::into_task));
    }
    set_terminal(image, console)?;
    finish_init(image, world, base, &mut done)?;
    Ok(done)
}

fn make_threads(world: &World<'_>, record: &ProcessRecord) -> Result<Vec<Puppet>, RestoreError> {
    let lacking = || RestoreError::Inconsistent(format!("process {} is not there", record.pid));
    let leader = world.puppets.get(&record.pid.0).ok_or_else(lacking)?;
    let make = |thread: &ThreadRecord| {
        let mut batch = leader.batch();
        let call = world.clone_call(&mut batch, thread.tid.0, THREAD_FLAGS as u64, 0);
        Ok(leader.spawn(batch, call, thread.tid.0, true)?)
    };
    record.threads.iter().skip(1).map(make).collect()
}

/// One thread's own state; with the leader's goes what all threads share.
fn restore_task(
    world: &World<'_>,
    puppet: &Puppet,
    process: &ProcessRecord,
    thread: &ThreadRecord,
    base: &SeedState,
) -> Result<(), TaskError> {
    let mut script = Script::new(puppet);
    if thread.tid == process.pid {
        restore_process(&mut script, process)?;
        // Threads were made with these, so they go only now.
        for number in world.own_numbers() {
            script.call("close floe's own descriptor", libc::SYS_close, &[number as u64])?;
        }
    }
    restore_thread(&mut script, thread)?;
    restore_credentials(&mut script, process, thread, base)?;
    script.run()?;
    apply_outside(puppet, process, thread, base)
}

fn settle_memory(image: &Image, leader: &Puppet, record: &ProcessRecord) -> Result<(), RestoreError> {
    let mut spaces = image.address_spaces().iter();
    let Some(space) = spaces.find(|space| space.pid == record.pid) else {
        return Ok(());
    };
    let mut script = Script::new(leader);
    let settled = mm::settle(&mut script, space).and_then(|()| Ok(script.run().map(drop)?));
    settled.map_err(|source| RestoreError::Build {
        pid: record.pid.0,
        source: Box::new(source),
    })
}

/// Unmaps the stub, from the system call instruction in the vDSO.
fn leave(image: &Image, leader: &Puppet, record: &ProcessRecord) -> Result<(), RestoreError> {
    let lacking = || RestoreError::Inconsistent(format!("process {} has no vDSO", record.pid));
    let space = image
        .address_spaces()
        .iter()
        .find(|space| space.pid == record.pid)
        .ok_or_else(lacking)?;
    let vdso = space
        .vmas
        .iter()
        .find(|vma| matches!(&vma.source, VmaSource::Special { name } if name == "[vdso]"))
        .ok_or_else(lacking)?;
    if vdso.end - vdso.start > VDSO_BYTES {
        return Err(lacking());
    }
    let mut text = vec![0; (vdso.end - vdso.start) as usize];
    MemoryFile::open(leader.tid())
        .and_then(|memory| memory.read(vdso.start, &mut text))
        .map_err(|source| RestoreError::System {
            action: format!("read the vDSO of process {}", record.pid),
            source,
        })?;
    let at = call_instruction(&text).ok_or_else(lacking)?;
    let arena = leader.arena_range();
    let arguments = [arena.start, arena.end - arena.start, 0, 0, 0, 0];
    leader.call_at(vdso.start + at as u64, "unmap the stub", libc::SYS_munmap, arguments)?;
    Ok(())
}

fn set_terminal(image: &Image, console: &[OwnedFd; 3]) -> Result<(), RestoreError> {
    let ConsoleRecord::Terminal { termios, .. } = &image.sandbox().console else {
        return Ok(());
    };
    let settings = floe_sandbox::TerminalSettings::from_bytes(termios)
        .ok_or_else(|| RestoreError::Inconsistent("the terminal's settings have the wrong size".to_owned()))?;
    settings
        .apply(console[0].as_raw_fd())
        .map_err(|source| RestoreError::System {
            action: "set up the terminal".to_owned(),
            source,
        })
}

/// Hands over the leaders; where PID 1 was not saved, the seed becomes a small init.
fn finish_init(
    image: &Image,
    world: &mut World<'_>,
    base: &SeedState,
    done: &mut Vec<Stopped>,
) -> Result<(), RestoreError> {
    if !image.sandbox().has_init {
        let root = image.processes().iter().find(|record| record.ppid.0 == 0);
        let root = root.ok_or_else(|| RestoreError::Inconsistent("there is no root process".to_owned()))?;
        let init = world.exec_init(root.pid)?;
        base.spread(init.tid(), &[]).map_err(|e| task_error(1, e))?;
        done.push(init);
    }
    let leaders = std::mem::take(&mut world.puppets);
    world.remember(&leaders);
    done.extend(leaders.into_values().map(Puppet::into_task));
    Ok(())
}

/// Whether a process has the mappings of the image and no others.
pub(super) fn mappings_differ(
    pid: floe_sys::Pid,
    wanted: &floe_image::record::AddressSpaceRecord,
) -> Result<Vec<String>, RestoreError> {
    Ok(floe_resources::mm::same_layout(
        &Mapping::read_all_without_flags(pid)?,
        wanted,
    ))
}
