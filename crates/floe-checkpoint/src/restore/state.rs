//! Gives every process its threads and every thread its own state, and takes floe's traces out of it.

use super::{RestoreError, task_error, tree::World, verify::Finished};
use floe_image::{
    Image,
    record::{ProcessRecord, ThreadRecord, VmaSource},
};
use floe_resources::mm;
use floe_resources::task::{
    RestoreError as TaskError, SeedState, apply_outside, arm_timers, confine, continue_sleep, finish_thread,
    make_timers, queue_signals, restore_credentials, restore_process, restore_process_settings, restore_thread,
    restore_thread_settings, share_filters,
};
use floe_sys::{Pid, memory::MemoryFile};
use floe_tracee::{Puppet, PuppetError, Registers, Script, Stopped, call_instruction};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::mpsc::Sender,
};

/// No vDSO is longer, by far.
const VDSO_BYTES: u64 = 1 << 20;

const THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// All threads of a tree, beside their processes' first ones.
pub struct Crowd<'a> {
    groups: Groups<'a>,
    /// Of each process of each group how many filters its threads have inherited, and those.
    members: Vec<Vec<(usize, Vec<Puppet>)>>,
}

impl Crowd<'_> {
    /// Their ids in floe's namespace, by their own.
    pub fn host_ids(&self) -> HashMap<i32, Pid> {
        let all = self.members.iter().flatten().flat_map(|(_, threads)| threads);
        all.map(|thread| (thread.thread(), thread.tid())).collect()
    }

    /// One of them, by its id in the image.
    pub fn thread(&self, id: i32) -> Option<&Puppet> {
        let mut all = self.members.iter().flatten().flat_map(|(_, threads)| threads);
        all.find(|thread| thread.thread() == id)
    }
}

/// Makes the threads of all processes.
pub fn make_threads<'a>(image: &'a Image, world: &mut World<'a>) -> Result<Crowd<'a>, RestoreError> {
    let groups = Groups::of(image);
    for record in groups.by_memory.iter().flatten() {
        world.enter_user_early(record)?;
    }
    let world = &*world;
    let member = |record: &&ProcessRecord| {
        let (filters, threads) = (prepare_leader(world, record)?, threads_of(world, record)?);
        world.settle_threads(record, puppets(world, record, &threads))?;
        Ok((filters, threads))
    };
    let members = groups.by_memory.iter().map(|group| group.iter().map(member).collect());
    let members = members.collect::<Result<_, RestoreError>>()?;
    Ok(Crowd { groups, members })
}

/// Completes all processes and tells of each thread that is complete; returns their threads, which are themselves again
/// and only wait to be let go.
pub fn complete<'a>(
    image: &'a Image,
    world: &mut World<'_>,
    crowd: Crowd<'a>,
    base: &SeedState,
    finished: &Sender<Finished<'a>>,
) -> Result<Vec<Stopped>, RestoreError> {
    let mut done = Vec::new();
    let Crowd { groups, members } = crowd;
    for (group, members) in groups.by_memory.iter().zip(members) {
        let (filters, threads): (Vec<usize>, Vec<Vec<Puppet>>) = members.into_iter().unzip();
        let all: Vec<Task<'_, '_>> = group
            .iter()
            .zip(&filters)
            .zip(&threads)
            .flat_map(|((record, filters), threads)| tasks(world, (record, *filters), threads))
            .collect();
        settle_memory(image, all[0].puppet, group[0])?;
        if let Some(bridge) = world.bridge {
            bridge.write(all[0].puppet.tid(), group[0].pid)?;
        }
        for task in &all {
            restore_task(world, task, &groups, base)?;
        }
        for record in group {
            set_memory_rules(image, world, record).map_err(|e| task_error(record.pid.0, e))?;
        }
        let exit = call_address(image, all[0].puppet, group[0])?;
        let registers = all
            .iter()
            .map(|task| task.last_registers(exit).map_err(|e| task.error(e)))
            .collect::<Result<Vec<_>, _>>()?;
        let puppets: Vec<(Vec<&Puppet>, &ProcessRecord)> = (group.iter().zip(&threads))
            .map(|(record, threads)| (puppets(world, record, threads).collect(), *record))
            .collect();
        for (puppets, record) in &puppets {
            make_timers(puppets, record).map_err(|e| task_error(record.pid.0, e))?;
        }
        // Signals once their actions are set, which would flush those that are ignored. The leader last: it limits what
        // all of them can have pending.
        for task in all.iter().rev() {
            queue_signals(task.puppet, task.process, task.thread).map_err(|e| task.error(e))?;
        }
        for (puppets, record) in &puppets {
            arm_timers(puppets, record).map_err(|e| task_error(record.pid.0, e))?;
        }
        leave(all[0].puppet, exit)?;
        for (task, registers) in all.iter().zip(&registers) {
            finish_thread(task.puppet, task.thread, registers, base).map_err(|e| task.error(e))?;
            // Nobody listens where looking at an earlier one failed, which is told later.
            let _ = finished.send(Finished {
                process: task.process,
                thread: task.index,
                tid: task.puppet.tid(),
                completes_table: groups.last_with_descriptors.contains(&task.process.pid.0),
            });
        }
        done.extend(threads.into_iter().flatten().map(Puppet::into_task));
    }
    finish_init(image, world, base, &mut done)?;
    Ok(done)
}

/// A task that is being completed.
struct Task<'a, 'i> {
    puppet: &'a Puppet,
    process: &'i ProcessRecord,
    thread: &'i ThreadRecord,
    /// Its position among the threads.
    index: usize,
    /// How many of its seccomp filters it has already.
    filters: usize,
}

impl Task<'_, '_> {
    /// What it goes on with: a leader that has ended in the image ends, by the system call instruction at `exit`.
    fn last_registers(&self, exit: u64) -> Result<Registers, TaskError> {
        match self.process.leader_ended {
            Some(status) if self.thread.tid == self.process.pid => {
                let mut registers = self.puppet.task().registers().map_err(PuppetError::from)?;
                let code = libc::WEXITSTATUS(status) as u64;
                registers.prepare_call(exit, libc::SYS_exit as u64, [code, 0, 0, 0, 0, 0]);
                Ok(registers)
            }
            Some(_) | None => continue_sleep(self.puppet, self.thread),
        }
    }

    fn error(&self, error: TaskError) -> RestoreError {
        task_error(self.thread.tid.0, error)
    }
}

/// The tasks of a process whose threads but the leader are `threads`, and all of which have `filters` filters.
fn tasks<'a, 'i>(
    world: &'a World<'_>,
    (process, filters): (&'i ProcessRecord, usize),
    threads: &'a [Puppet],
) -> impl Iterator<Item = Task<'a, 'i>> {
    let puppets = puppets(world, process, threads);
    let threads = process.threads.iter().enumerate();
    puppets.zip(threads).map(move |(puppet, (index, thread))| Task {
        puppet,
        process,
        thread,
        index,
        filters,
    })
}

fn puppets<'a>(
    world: &'a World<'_>,
    process: &ProcessRecord,
    threads: &'a [Puppet],
) -> impl Iterator<Item = &'a Puppet> {
    std::iter::once(&world.puppets[&process.pid.0]).chain(threads)
}

/// Living processes by what they share.
struct Groups<'a> {
    /// Those that share memory, whose owner comes first.
    by_memory: Vec<Vec<&'a ProcessRecord>>,
    /// Of those that share descriptors, the one that is completed last.
    last_with_descriptors: HashSet<i32>,
}

impl<'a> Groups<'a> {
    fn of(image: &'a Image) -> Self {
        let memory = image.owners(libc::CLONE_VM as u32);
        let mut by_memory: BTreeMap<usize, Vec<&ProcessRecord>> = BTreeMap::new();
        let positions: HashMap<i32, usize> = (image.processes().iter().enumerate())
            .map(|(position, record)| (record.pid.0, position))
            .collect();
        for record in image.processes() {
            let Some(position) = memory.get(&record.pid.0).and_then(|owner| positions.get(owner)) else {
                continue;
            };
            let group = by_memory.entry(*position).or_default();
            let at = if record.shared & libc::CLONE_VM as u32 == 0 {
                0
            } else {
                group.len()
            };
            group.insert(at, record);
        }
        let by_memory: Vec<Vec<&ProcessRecord>> = by_memory.into_values().collect();
        let descriptors = image.owners(libc::CLONE_FILES as u32);
        let last: HashMap<i32, i32> = (by_memory.iter().flatten())
            .filter_map(|record| Some((*descriptors.get(&record.pid.0)?, record.pid.0)))
            .collect();
        Self {
            by_memory,
            last_with_descriptors: last.into_values().collect(),
        }
    }
}

/// What threads are to inherit; returns how many filters they do.
fn prepare_leader(world: &World<'_>, record: &ProcessRecord) -> Result<usize, RestoreError> {
    let lacking = || RestoreError::Inconsistent(format!("process {} is not there", record.pid));
    let leader = world.puppets.get(&record.pid.0).ok_or_else(lacking)?;
    let mut script = Script::new(leader);
    let shared = share_filters(&mut script, record).map_err(|e| task_error(record.pid.0, e))?;
    script.run()?;
    Ok(shared)
}

fn threads_of(world: &World<'_>, record: &ProcessRecord) -> Result<Vec<Puppet>, RestoreError> {
    let make = |thread: &ThreadRecord| world.spawn(record.pid.0, thread.tid.0, (THREAD_FLAGS as u64, 0));
    record.threads.iter().skip(1).map(make).collect()
}

/// One thread's own state, its first filters apart, which it has; with the leader's goes what all threads share.
fn restore_task(
    world: &World<'_>,
    task: &Task<'_, '_>,
    groups: &Groups<'_>,
    base: &SeedState,
) -> Result<(), RestoreError> {
    let Task {
        puppet,
        process,
        thread,
        filters,
        ..
    } = *task;
    let mut script = Script::new(puppet);
    let entry = world.user_entry(&mut script, process, thread)?;
    let mut restore = || -> Result<(), TaskError> {
        if thread.tid == process.pid {
            restore_process(&mut script, process)?;
            // Threads were made with these, so they go only now.
            if groups.last_with_descriptors.contains(&process.pid.0) {
                for number in world.own_numbers() {
                    script.call("close floe's own descriptor", libc::SYS_close, &[number as u64])?;
                }
            }
        }
        restore_thread(&mut script, thread)?;
        restore_thread_settings(&mut script, &thread.switches)?;
        confine(&mut script, &thread.seccomp, filters)?;
        restore_credentials(&mut script, process, thread, (base, &entry))?;
        script.run()?;
        apply_outside(puppet, process, thread, base)
    };
    restore().map_err(|e| task.error(e))
}

/// What can be said of memory only when all of it is there.
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

/// Rules about a process's memory, once all of it is there.
fn set_memory_rules(image: &Image, world: &World<'_>, record: &ProcessRecord) -> Result<(), TaskError> {
    let space = image.address_spaces().iter().find(|space| space.pid == record.pid);
    let mut script = Script::new(&world.puppets[&record.pid.0]);
    restore_process_settings(&mut script, record, space.map_or(&[], |space| &space.vmas))?;
    script.run()?;
    Ok(())
}

/// The system call instruction in the vDSO, the only one that is left when the stub is gone.
fn call_address(image: &Image, leader: &Puppet, record: &ProcessRecord) -> Result<u64, RestoreError> {
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
    Ok(vdso.start + at as u64)
}

/// Unmaps the stub.
fn leave(leader: &Puppet, address: u64) -> Result<(), RestoreError> {
    let arena = leader.arena_range();
    let arguments = [arena.start, arena.end - arena.start, 0, 0, 0, 0];
    leader.call_at(address, "unmap the stub", libc::SYS_munmap, arguments)?;
    Ok(())
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
