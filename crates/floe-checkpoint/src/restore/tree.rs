//! Grows the tree out of the seed, step by step of the plan.

use super::{
    PidMethod, RestoreError,
    contents::MadeContents,
    lazy::Later,
    namespaces::{Namespaces, Place},
    plan::Step,
    sharing::{Held, Lending, Memory},
    task_error,
    vdso::Bridge,
};
use crate::stage::Control;
use floe_image::{
    Image, Numbering,
    record::{Credentials, DirectoryRecord, NsPid, ProcessRecord, ProcessState},
};
use floe_resources::{
    cgroup::Made,
    channel::Channel,
    file::terminal::MadeTerminals,
    mm::{Builder, Filled, Filler, first_gap},
    ns::Roots,
    task::restore_login,
};
use floe_sys::{Pid, procfs::Status};
use floe_tracee::{ARENA_BYTES, Puppet, Script, Stopped};
use std::{
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd, OwnedFd, RawFd},
    rc::Rc,
};

const PAGE: u64 = 4096;
const PR_SET_THP_DISABLE: u64 = 41;
/// Those whose default action is to dump core, signal(7).
const CORE_SIGNALS: [i32; 10] = [
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGSYS,
];

/// Working and root directory, and the number of the mount namespace, in whose root directory both are where there are none.
pub(super) type Directories<'a> = (Option<(&'a DirectoryRecord, &'a DirectoryRecord)>, u32);

/// An address space that a task has.
#[derive(Clone)]
pub(super) enum Heritage<'a> {
    /// One of the image.
    Own(Filled<'a>),
    /// One for others.
    Lent(Rc<Held>),
}

impl Heritage<'_> {
    fn filled(&self) -> Filled<'_> {
        match self {
            Self::Own(own) => *own,
            Self::Lent(held) => Filled {
                space: &held.space,
                runs: &held.runs,
                huge: &held.huge,
                later: &[],
            },
        }
    }
}

/// All tasks made so far, and what making them needs.
pub struct World<'a> {
    records: HashMap<i32, &'a ProcessRecord>,
    /// Ids in all PID namespaces, helpers' too.
    pub numbering: Numbering,
    /// Where children of those are born who were told otherwise than into their own PID namespace.
    pub(super) pids_of_children: HashMap<i32, u32>,
    /// Those of other kinds that not all tasks are in, and PID namespaces below the tree's.
    pub(super) namespaces: Namespaces,
    /// Which of these processes have entered.
    pub(super) places: HashMap<i32, Place<'a>>,
    /// Who tasks are until they are somebody.
    pub(super) base: Credentials,
    memory: Memory<'a>,
    /// Leaders by their id in the namespace.
    pub puppets: BTreeMap<i32, Puppet>,
    /// The address space a task was given or inherited.
    pub(super) heritage: HashMap<i32, Heritage<'a>>,
    /// What processes hold while they fork.
    pub(super) lendings: HashMap<i32, Rc<Lending>>,
    /// What a task has.
    pub(super) directories: HashMap<i32, Directories<'a>>,
    pub channel: Channel,
    /// Number of the ns_last_pid file in every task.
    pub(super) last_pid: RawFd,
    pub(super) method: PidMethod,
    /// Zombies and their host ids.
    ended: BTreeMap<i32, Pid>,
    filler: Filler<'a>,
    /// Pages that are left out, as they come later.
    pub later: Option<&'a Later>,
    /// What stands in the place of another kernel's vDSO.
    pub bridge: Option<&'a Bridge>,
    /// Where processes are put before they have memory, which is counted there.
    pub cgroups: Option<&'a Made<'a>>,
}

impl<'a> World<'a> {
    /// Takes the seed over as PID 1.
    pub fn start(
        seed: Stopped,
        image: &'a Image,
        near: OwnedFd,
        inherited: RawFd,
        method: PidMethod,
    ) -> Result<Self, RestoreError> {
        let puppet = Puppet::from_seed(seed, |now| {
            let vmas = image.address_spaces().iter().flat_map(|space| &space.vmas);
            let taken = now.iter().map(|m| m.start..m.end);
            first_gap(taken.chain(vmas.map(|v| v.start..v.end)).collect(), ARENA_BYTES)
        })?;
        let (number, last_pid) = free_numbers(image);
        let mut world = Self {
            records: image.processes().iter().map(|record| (record.pid.0, record)).collect(),
            numbering: Numbering::of(image),
            pids_of_children: HashMap::new(),
            namespaces: Namespaces::default(),
            places: HashMap::new(),
            base: Credentials::default(),
            memory: Memory::of(image),
            puppets: BTreeMap::from([(1, puppet)]),
            heritage: HashMap::new(),
            lendings: HashMap::new(),
            directories: HashMap::new(),
            channel: Channel::new(near, number),
            last_pid,
            method,
            ended: BTreeMap::new(),
            filler: Filler::new(image),
            later: None,
            bridge: None,
            cgroups: None,
        };
        world.settle(inherited)?;
        Ok(world)
    }

    /// Moves the channel and the ns_last_pid file to numbers nobody wants, raises the limit on descriptors, resets
    /// signals, disables huge pages (memory is built of them where it was) and closes the streams, which are handed out
    /// like all other files.
    fn settle(&mut self, inherited: RawFd) -> Result<(), RestoreError> {
        let number = self.channel.number();
        let seed = &self.puppets[&1];
        let mut batch = seed.batch();
        let old = batch.room(16);
        batch.call(
            "read the limit on descriptors",
            libc::SYS_prlimit64,
            &[0, libc::RLIMIT_NOFILE.into(), 0, old],
        );
        seed.run(&mut batch)?;
        let hard: [u8; 8] = batch.bytes(old, 16)[8..].try_into().expect("8 of 16 bytes");
        let mut batch = seed.batch();
        // Whoever started floe may have ignored them, and that is inherited.
        let ignored = Status::read(&format!("/proc/{}", seed.tid()))?.ignored;
        let default = batch.room(32);
        for signal in (1..=64).filter(|signal| ignored & (1 << (signal - 1)) != 0) {
            batch.call(
                "reset a signal action",
                libc::SYS_rt_sigaction,
                &[signal, default, 0, 8],
            );
        }
        batch.call("disable huge pages", libc::SYS_prctl, &[PR_SET_THP_DISABLE, 1]);
        let raised = batch.data(&[hard, hard].concat());
        batch.call(
            "raise the limit on descriptors",
            libc::SYS_prlimit64,
            &[0, libc::RLIMIT_NOFILE.into(), raised, 0],
        );
        if inherited != number {
            batch.call(
                "move the channel",
                libc::SYS_dup3,
                &[inherited as u64, number as u64, 0],
            );
            batch.call("close the channel's first number", libc::SYS_close, &[inherited as u64]);
        }
        for stream in 0..3u64 {
            if stream != number as u64 {
                batch.attempt("close a stream", libc::SYS_close, &[stream]);
            }
        }
        seed.run(&mut batch)?;
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open("/proc/sys/kernel/ns_last_pid")
            .map_err(|source| RestoreError::System {
                action: "open ns_last_pid".into(),
                source,
            })?;
        let landed = self.channel.give(&mut Script::new(seed), &[file.as_fd()])?[0];
        let mut batch = seed.batch();
        if landed != self.last_pid {
            batch.call(
                "move the ns_last_pid file",
                libc::SYS_dup3,
                &[landed as u64, self.last_pid as u64, 0],
            );
            batch.call("close its first number", libc::SYS_close, &[landed as u64]);
        }
        Ok(seed.run(&mut batch)?)
    }

    /// Gives the seed the login of the image.
    pub fn restore_login(&mut self, login: u32) -> Result<(), RestoreError> {
        restore_login(&self.puppets[&1], &mut self.channel, login).map_err(|error| task_error(1, error))
    }

    /// Ids of all living processes and zombies in floe's namespace, by their ids in the tree's.
    pub fn host_pids(&self) -> BTreeMap<i32, Pid> {
        let mut pids = self.ended.clone();
        pids.extend(
            self.heritage
                .keys()
                .filter_map(|pid| Some((*pid, self.puppets.get(pid)?.tid()))),
        );
        pids
    }

    /// Numbers of floe's own descriptors in every task.
    pub fn own_numbers(&self) -> [RawFd; 2] {
        [self.channel.number(), self.last_pid]
    }

    /// Keeps the host ids of leaders that are handed over.
    pub fn remember(&mut self, leaders: &BTreeMap<i32, Puppet>) {
        self.ended
            .extend(leaders.iter().map(|(pid, puppet)| (*pid, puppet.tid())));
    }

    /// Makes the seed, where PID 1 was not saved, the small init above `root`.
    pub fn exec_init(&mut self, root: NsPid) -> Result<Stopped, RestoreError> {
        let program = floe_sandbox::init::program().map_err(|source| RestoreError::System {
            action: "make the init program".into(),
            source,
        })?;
        let seed = self.take(1)?;
        let number = self.channel.give(&mut Script::new(&seed), &[program.as_fd()])?[0];
        let mut batch = seed.batch();
        batch.call("enable huge pages", libc::SYS_prctl, &[PR_SET_THP_DISABLE, 0]);
        for number in self.own_numbers() {
            batch.call("close floe's own descriptor", libc::SYS_close, &[number as u64]);
        }
        let arguments = [libc::F_SETFD as u64, libc::FD_CLOEXEC as u64];
        batch.call(
            "close the program on exec",
            libc::SYS_fcntl,
            &[number as u64, arguments[0], arguments[1]],
        );
        seed.run(&mut batch)?;
        self.ended.insert(1, seed.tid());
        let words = [floe_sandbox::init::NAME.to_owned(), root.to_string()];
        Ok(seed.execute(number, &words)?)
    }

    /// The first process, before it is somebody.
    pub fn seed(&self) -> Result<&Puppet, RestoreError> {
        self.puppet(1)
    }

    /// What writes pages.
    pub fn filler(&self) -> &Filler<'a> {
        &self.filler
    }

    /// Bytes of pages written.
    pub fn written(&self) -> u64 {
        self.filler.written()
    }

    /// The record of a process.
    pub fn record(&self, pid: i32) -> Option<&'a ProcessRecord> {
        self.records.get(&pid).copied()
    }

    /// The records of all processes.
    pub fn records(&self) -> impl Iterator<Item = &'a ProcessRecord> {
        self.records.values().copied()
    }

    pub(super) fn puppet(&self, pid: i32) -> Result<&Puppet, RestoreError> {
        self.puppets
            .get(&pid)
            .ok_or_else(|| RestoreError::Inconsistent(format!("process {pid} is needed but not there")))
    }

    /// Carries out the plan.
    pub fn grow(
        &mut self,
        steps: &[Step],
        lendings: HashMap<i32, Lending>,
        (made, terminals): (&MadeContents, &MadeTerminals),
        roots: &Roots,
        control: &Control<'_>,
    ) -> Result<(), RestoreError> {
        let runs = self.memory.runs.values().copied().flatten();
        let later = self.later.into_iter().flat_map(HashMap::values).flatten();
        let later: u64 = later.map(|run| run.pages * PAGE).sum();
        let total = runs.map(|run| run.pages * PAGE).sum::<u64>() - later;
        // Others make their sessions on the way.
        self.take_terminal(1, terminals)?;
        self.lendings = lendings.into_iter().map(|(pid, lent)| (pid, Rc::new(lent))).collect();
        for step in steps {
            control.check("tree")?;
            match *step {
                Step::Fork {
                    by,
                    pid,
                    namespace,
                    helper,
                } => self.fork(by, (pid, namespace, helper), (made, roots))?,
                Step::Build(pid) => {
                    if let Some(record) = self.record(pid) {
                        self.place(record)?;
                    }
                    self.build(pid, made, roots)?;
                    control.observer.pages(self.written().min(total), total);
                }
                Step::NewSession(pid) => {
                    self.simple(pid, "make a session", libc::SYS_setsid, &[])?;
                    self.take_terminal(pid, terminals)?;
                }
                Step::Join { by, pid, group } => {
                    let arguments = [self.called(by, pid)?, self.called(by, group)?].map(|id| id as u64);
                    self.simple(by, "join a process group", libc::SYS_setpgid, &arguments)?;
                }
                Step::Subreaper(pid) => {
                    let arguments = [libc::PR_SET_CHILD_SUBREAPER as u64, 1];
                    self.simple(pid, "become a subreaper", libc::SYS_prctl, &arguments)?;
                }
                Step::EndHelper { pid, parent } => self.end_helper(pid, parent)?,
                Step::EndZombie(pid) => self.end_zombie(pid)?,
                Step::Stop(pid) => self.stop(pid)?,
            }
        }
        Ok(())
    }

    /// Moves a process that is there to its cgroups.
    pub fn place(&self, record: &ProcessRecord) -> Result<(), RestoreError> {
        match (self.cgroups, self.puppets.get(&record.pid.0)) {
            (Some(cgroups), Some(puppet)) => Ok(cgroups.place(record, puppet.tid())?),
            _ => Ok(()),
        }
    }

    /// Gives the leader of a session its terminal, which those have that it forks from now on.
    fn take_terminal(&self, pid: i32, terminals: &MadeTerminals) -> Result<(), RestoreError> {
        let Some(link) = self.record(pid).and_then(|record| record.terminal.as_ref()) else {
            return Ok(());
        };
        let puppet = self.puppet(pid)?;
        let terminal = terminals.slave(link.pair)?;
        let number = self.channel.give(&mut Script::new(puppet), &[terminal])?[0] as u64;
        let mut batch = puppet.batch();
        batch.call("take the terminal", libc::SYS_ioctl, &[number, libc::TIOCSCTTY, 1]);
        batch.call("close the terminal", libc::SYS_close, &[number]);
        Ok(puppet.run(&mut batch)?)
    }

    pub(super) fn simple(
        &self,
        pid: i32,
        what: &'static str,
        number: i64,
        arguments: &[u64],
    ) -> Result<(), RestoreError> {
        let puppet = self.puppet(pid)?;
        let mut batch = puppet.batch();
        batch.call(what, number, arguments);
        Ok(puppet.run(&mut batch)?)
    }

    /// Gives a process its address space, and its root and working directory.
    fn build(&mut self, pid: i32, made: &MadeContents, roots: &Roots) -> Result<(), RestoreError> {
        let held = match self.lendings.get(&pid) {
            Some(lending) => Heritage::Lent(Rc::new(lending.first.clone())),
            None => self.own(pid)?,
        };
        self.hold(pid, held, made, Some(roots))
    }

    /// The address space that the image holds for a process.
    pub(super) fn own(&self, pid: i32) -> Result<Heritage<'a>, RestoreError> {
        let lacking = || RestoreError::Inconsistent(format!("process {pid} has no address space"));
        let space = *self.memory.spaces.get(&pid).ok_or_else(lacking)?;
        Ok(Heritage::Own(Filled {
            space,
            runs: self.memory.runs(pid),
            huge: self.memory.huge(pid),
            later: self.later.and_then(|later| later.get(&pid)).map_or(&[], Vec::as_slice),
        }))
    }

    /// Turns what a process has into `wanted`; with root directories given, also sets its directories.
    pub(super) fn hold(
        &mut self,
        pid: i32,
        wanted: Heritage<'a>,
        made: &MadeContents,
        roots: Option<&Roots>,
    ) -> Result<(), RestoreError> {
        let builder = Builder {
            filler: &self.filler,
            channel: &self.channel,
            sources: &made.sources,
            ipc: (&self.namespaces.known, self.whereabouts(pid).ipc()),
        };
        let mut script = Script::new(self.puppet(pid)?);
        let heritage = self.heritage.get(&pid).map(Heritage::filled);
        builder
            .build(&mut script, heritage, wanted.filled())
            .map_err(|source| RestoreError::Build {
                pid,
                source: Box::new(source),
            })?;
        let directories = match roots {
            Some(roots) => self.enter_directories(&mut script, pid, (made, roots))?,
            None => None,
        };
        script.run()?;
        self.heritage.insert(pid, wanted);
        if let Some(directories) = directories {
            self.directories.insert(pid, directories);
        }
        Ok(())
    }

    /// Mount namespace, root and working directory; children inherit them, so only what differs is set. Returns what they are
    /// then.
    fn enter_directories(
        &self,
        script: &mut Script<'_>,
        pid: i32,
        (made, roots): (&MadeContents, &Roots),
    ) -> Result<Option<Directories<'a>>, RestoreError> {
        let Some(record) = self.record(pid) else {
            return Ok(None);
        };
        let (wanted, number) = ((&record.cwd, &record.root), record.mount_namespace);
        let before = self.directories.get(&pid).copied();
        if before == Some((Some(wanted), number)) {
            return Ok(None);
        }
        let open = |directory: &DirectoryRecord| {
            made.directory(roots, directory).map_err(RestoreError::system(format!(
                "open directory {} of process {pid}",
                String::from_utf8_lossy(&directory.path)
            )))
        };
        let (cwd, own_root) = (open(wanted.0)?, open(wanted.1)?);
        let namespace = roots.namespace(number);
        let numbers = self.channel.give(script, &[cwd.as_fd(), own_root.as_fd(), namespace])?;
        let [cwd, own_root, namespace] = [numbers[0], numbers[1], numbers[2]].map(|number| number as u64);
        let batch = script.reserve(7, 16)?;
        // To enter one is to be in its root directory.
        let moves = before.map_or(0, |(_, before)| before) != number;
        let before = before.and_then(|(both, _)| both).map(|(_, root)| root);
        let before = before.filter(|_| !moves);
        let is_top = wanted.1.path == b"/" && wanted.1.mount_namespace == number;
        let is_there = before.map_or(is_top, |before| before == wanted.1);
        if moves {
            let arguments = [namespace, libc::CLONE_NEWNS as u64];
            batch.call("enter a mount namespace", libc::SYS_setns, &arguments);
        }
        if !is_there {
            let dot = batch.data(b".\0");
            batch.call("enter the root directory", libc::SYS_fchdir, &[own_root]);
            batch.call("change the root directory", libc::SYS_chroot, &[dot]);
        }
        batch.call("change the working directory", libc::SYS_fchdir, &[cwd]);
        batch.call("close", libc::SYS_close, &[cwd]);
        batch.call("close", libc::SYS_close, &[own_root]);
        batch.call("close", libc::SYS_close, &[namespace]);
        Ok(Some((Some(wanted), number)))
    }

    pub(super) fn end_helper(&mut self, pid: i32, parent: i32) -> Result<(), RestoreError> {
        self.take(pid)?.end(0)?;
        self.heritage.remove(&pid);
        let arguments = [self.called(parent, pid)? as u64, 0, libc::__WALL as u64, 0];
        self.simple(parent, "reap a helper", libc::SYS_wait4, &arguments)
    }

    fn take(&mut self, pid: i32) -> Result<Puppet, RestoreError> {
        let lacking = || RestoreError::Inconsistent(format!("process {pid} is needed but not there"));
        self.puppets.remove(&pid).ok_or_else(lacking)
    }

    fn end_zombie(&mut self, pid: i32) -> Result<(), RestoreError> {
        let lacking = || RestoreError::Inconsistent(format!("process {pid} is no zombie in the image"));
        let record = self.record(pid).ok_or_else(lacking)?;
        let ProcessState::Zombie { status } = record.state else {
            return Err(lacking());
        };
        let puppet = self.take(pid)?;
        self.ended.insert(pid, puppet.tid());
        self.heritage.remove(&pid);
        let mut batch = puppet.batch();
        if let Some(thread) = record.threads.first() {
            let name = batch.data(&[thread.comm.as_slice(), &[0]].concat());
            batch.call("set the name", libc::SYS_prctl, &[libc::PR_SET_NAME as u64, name]);
            let who = match self.whereabouts(pid).user() {
                0 => Some(thread.credentials.clone()),
                inside => self
                    .namespaces
                    .seen(inside)?
                    .credentials(&thread.credentials, [true, true, false]),
            };
            // Whom its user namespace does not know it is by birth.
            if let Some(who) = who {
                let ids = who.gids.map(u64::from);
                batch.call("set the groups", libc::SYS_setresgid, &ids[..3]);
                let ids = who.uids.map(u64::from);
                batch.call("set the users", libc::SYS_setresuid, &ids[..3]);
            }
        }
        // It must leave no core file, wherever the limits and the host's core_pattern would have put one. How such a process
        // ended only root is told (proc_pid_stat(5)), so the others stay as they are.
        if CORE_SIGNALS.contains(&libc::WTERMSIG(status)) {
            batch.call(
                "end without a core",
                libc::SYS_prctl,
                &[libc::PR_SET_DUMPABLE as u64, 0],
            );
        }
        puppet.run(&mut batch)?;
        puppet.end(status)?;
        self.forget_child_signal(record.ppid, record.exit_signal)
    }

    /// Takes the signal that a made zombie or stop sent to its parent out of the parent's queue again: what is pending
    /// there is put back from the image.
    pub(super) fn forget_child_signal(&self, parent: NsPid, signal: i32) -> Result<(), RestoreError> {
        let Some(puppet) = self.puppets.get(&parent.0).filter(|_| (1..=64).contains(&signal)) else {
            return Ok(());
        };
        let mut batch = puppet.batch();
        let set = batch.data(&(1u64 << (signal - 1)).to_ne_bytes());
        let no_time = batch.room(16);
        batch.attempt(
            "forget a child's signal",
            libc::SYS_rt_sigtimedwait,
            &[set, 0, no_time, 8],
        );
        Ok(puppet.run(&mut batch)?)
    }

    fn stop(&mut self, pid: i32) -> Result<(), RestoreError> {
        let lacking = || RestoreError::Inconsistent(format!("process {pid} is not stopped in the image"));
        let record = self.record(pid).ok_or_else(lacking)?;
        let ProcessState::Stopped { signal, reported } = record.state else {
            return Err(lacking());
        };
        let stoppers = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        if !stoppers.contains(&signal) {
            return Err(RestoreError::Inconsistent(format!("signal {signal} stops no process")));
        }
        self.puppets
            .get_mut(&pid)
            .ok_or_else(lacking)?
            .stop_by_job_control(signal)?;
        if reported && self.puppets.contains_key(&record.ppid.0) {
            const P_PID: u64 = 1;
            let flags = (libc::WSTOPPED | libc::WNOHANG) as u64;
            self.simple(
                record.ppid.0,
                "note the stop",
                libc::SYS_waitid,
                &[P_PID, self.called(record.ppid.0, pid)? as u64, 0, flags, 0],
            )?;
        }
        self.forget_child_signal(record.ppid, libc::SIGCHLD)
    }
}

/// Two numbers that no descriptor of the image has.
fn free_numbers(image: &Image) -> (RawFd, RawFd) {
    let taken: std::collections::HashSet<RawFd> = image
        .descriptor_tables()
        .iter()
        .flat_map(|table| table.descriptors.iter().map(|descriptor| descriptor.number))
        .collect();
    let mut free = (3..).filter(|number| !taken.contains(number));
    let both = free.next().zip(free.next());
    both.expect("there are more numbers than descriptors")
}
