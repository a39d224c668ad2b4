//! Reads all state of a held tree but page contents, and finds all that can't be carried.

use super::{
    Target,
    console::Streams,
    from_outside::{FromOutside, PagesLookedAt, mappings_of, own_pages},
    machine::{header, machine},
    seize::HeldTree,
    tty,
};
use crate::{
    restore::{PlanError, plan},
    stage::{Control, StageError},
};
use floe_image::{
    Numbering,
    record::{
        AddressSpaceRecord, ClocksRecord, ConsoleRecord, DirectoryRecord, HeaderRecord, IpcRecord, LinkRecord,
        MachineRecord, NamespaceContents, NamespaceOrigin, NetworkRecord, NsPid, PidsOfChildren, ProcessRecord,
        PublishedRecord, SandboxRecord, TerminalLink,
    },
};
use floe_resources::{
    cgroup::{self, FoundCgroups, TreeError},
    file::{self, CollectOptions, Collected, ConsoleLinks, Externals, FileError, TcpMode},
    ipc::{self, IpcError, IpcSpaces},
    mm::{self, ContentError, Contents, PageTables, SeenPages},
    ns::{self, FoundMounts, MountSpaces, NsError, Others},
    refusal::Refusals,
    task::{self, Decoys, DumpError, Ends, HeldProcess, ShareError, Sharing},
    tree::{FoundProcess, FoundTree},
};
use floe_sandbox::{AttachError, LINK_INSIDE, LinkState};
use floe_sys::{Pid, procfs::ProcError, sched::Usual, time_namespace::Clocks};
use floe_tracee::{Stopped, TraceError};
use nix::errno::Errno;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    os::fd::AsFd,
};

/// State that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// A task's.
    #[error("inspect {task}")]
    Task {
        /// How findings name it.
        task: String,
        /// Why not.
        #[source]
        source: Box<DumpError>,
    },
    /// /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// Memory.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// Files.
    #[error(transparent)]
    File(#[from] FileError),
    /// Namespaces.
    #[error(transparent)]
    Namespace(#[from] NsError),
    /// System V IPC.
    #[error(transparent)]
    Ipc(#[from] IpcError),
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] TreeError),
    /// What processes share.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The size of extended registers.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The host's scheduler.
    #[error("find out how threads are scheduled here")]
    Usual(#[source] Errno),
    /// The sandbox's monitor.
    #[error("ask the sandbox's monitor for what it holds")]
    Survey(#[source] AttachError),
    /// Told to stop.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A path or the vDSO.
    #[error("read {what} of process {pid}")]
    Read {
        /// What.
        what: &'static str,
        /// Whose.
        pid: Pid,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// All records but page maps, and where contents are to be read from.
pub struct Inspected {
    pub header: HeaderRecord,
    pub machine: MachineRecord,
    pub sandbox: SandboxRecord,
    pub processes: Vec<ProcessRecord>,
    pub spaces: Vec<AddressSpaceRecord>,
    pub contents: Contents,
    pub files: Collected,
    pub mounts: FoundMounts,
    pub networks: Vec<NetworkRecord>,
    /// The monitor keeps still as long as this is there.
    _streams: Streams,
    /// Bytes of pages to be written.
    pub bytes: u64,
    /// How many pages each process has of its own; about so many of those whose pages are still to be looked at.
    pages: HashMap<i32, u64>,
    /// Processes whose pages were not looked at so far.
    not_looked_at: HashSet<i32>,
    /// Where those of processes are that were looked at; for the tree as it stood still then.
    pub seen: HashMap<i32, SeenPages>,
}

impl Inspected {
    /// Reads it.
    pub fn read(
        held: &HeldTree,
        (target, (tcp, external), pages_looked_at): (&Target, (TcpMode, &Externals), PagesLookedAt),
        refusals: &mut Refusals,
        control: &Control<'_>,
    ) -> Result<Self, InspectError> {
        let links = target.links();
        task::refuse_unsupported(&held.tree, refusals)?;
        task::refuse_labels(&held.tree, refusals)?;
        let mut sysctls = ns::sysctl::find(&held.tree)?;
        let sharing = Sharing::find(&held.tree, refusals)?;
        let first = held.tree.root().map_or(target.root(), FoundProcess::task);
        let root = ns::root_directory(first)?;
        let mut kept = ns::Held::by_descriptors(&held.tree)?;
        let mut contents = Contents::new(MountSpaces::find(&held.tree, first, &mut kept)?);
        let own = target.own_cgroups();
        let frozen = held.frozen_before();
        let own = cgroup::Own {
            paths: &own,
            frozen: &frozen,
        };
        let cgroups = cgroup::dump(&held.tree, own, refusals)?;
        let others = Others::find(&held.tree, (&contents.spaces, &kept, &cgroups), refusals)?;
        sysctls.extend(ns::sysctl::find_of_users(&others, refusals)?);
        contents.ipc = IpcSpaces::find(&held.tree, &others)?;
        sysctls.extend(ns::sysctl::find_of_ipc(&contents.ipc, refusals)?);
        let streams = Streams::survey(target, root.as_fd(), &mut contents, refusals)?;
        let mut processes = Vec::with_capacity(held.tree.processes.len());
        let mut spaces = Vec::new();
        let mut decoys = Decoys::none_yet();
        let usual = Usual::find().map_err(InspectError::Usual)?;
        let (mut pages, mut not_looked_at, mut seen) = (HashMap::new(), HashSet::new(), HashMap::new());
        let mut ends = Ends::none_yet()?;
        let mut from_outside = FromOutside::read_all(held, &sharing, pages_looked_at);
        for found in &held.tree.processes {
            control.check("inspect")?;
            if found.is_zombie() {
                processes.push(task::dump_zombie(found, &ends, refusals).map_err(|e| task_error(found, e))?);
                continue;
            }
            let outside = from_outside.next().expect("all living ones were read");
            let process = held.process(found);
            let foreign = task::refuse_foreign_code(&process, refusals).map_err(|e| task_error(found, e.into()))?;
            let filtered = task::refuse_calls_filtered(&process, refusals).map_err(|e| task_error(found, e))?;
            if foreign || filtered {
                continue;
            }
            let outside = outside?;
            ends.ask(&process, &held.tree).map_err(|e| task_error(found, e))?;
            let (mut record, memory) = task::dump_process(&process, outside.files, &mut decoys, &usual, refusals)
                .map_err(|e| task_error(found, e))?;
            (record.cwd, record.root) = (
                directory("cwd", found, &mut contents, refusals)?,
                directory("root", found, &mut contents, refusals)?,
            );
            record.shared = sharing.with_parent(found);
            record.mount_namespace = contents.spaces.of_task(found.task());
            record.pids_of_children = ns::pids::look(&others, found)?;
            others.note(found, &mut record)?;
            if let Some(tables) = outside.page_tables {
                let mut space = mm::address_space(&process, &memory, &mut contents, refusals)?;
                tables.note_guards(found, &mut space, &mut contents);
                let later = pages_looked_at.is_later(found);
                let count = tables.seen.pages;
                pages.insert(found.ns_pid, if later { own_pages(found).max(count) } else { count });
                seen.insert(found.ns_pid, tables.seen);
                if later {
                    not_looked_at.insert(found.ns_pid);
                }
                others.refuse_segments(found, (&record, &space), refusals);
                spaces.push(space);
            }
            processes.push(record);
        }
        let way = target.link().filter(|link| link.carrier.is_none()).map(LinkState::way);
        contents.refuse_hidden(refusals);
        let options = CollectOptions {
            cgroups: &cgroups,
            search_outside: matches!(target, Target::Tree { .. }),
            tcp,
            joined: way.as_ref(),
            carrier: target
                .link()
                .and_then(|link| Some((link.address, link.carrier?.name()))),
            external,
        };
        let mut files = file::collect((&held.tree, &sharing, &others), links, &mut contents, refusals, options)?;
        let outside = tty::session_from_outside(&held.tree, links);
        for record in &mut processes {
            let Some(found) = held.tree.living().find(|found| found.ns_pid == record.pid.0) else {
                continue;
            };
            let has_terminal = match held.tree.living().find(|leader| leader.ns_pid == found.ns_sid) {
                Some(leader) => leader.stat.tty_nr != 0,
                None => outside == Some(found.ns_sid),
            };
            record.no_terminal = found.stat.tty_nr == 0 && has_terminal;
            if outside != Some(found.ns_sid) {
                record.terminal = terminal(&held.tree, found, (links, &files.sessions), refusals);
            }
        }
        if let (Some(session), Some(root)) = (outside, held.tree.root()) {
            let link = TerminalLink {
                pair: None,
                foreground: foreground(&held.tree, root),
            };
            tty::move_session(&mut processes, session, &link);
        }
        let (mut sandbox, mut mounts, networks) = sandbox(
            (held, &cgroups),
            target,
            (&streams, &files, &others),
            (&mut contents, refusals),
        )?;
        (sandbox.cgroups, sandbox.sysctls) = (cgroups.into_records(&mounts.namespaces), sysctls);
        for (number, record) in mounts.namespaces.iter_mut().enumerate() {
            record.owner = others.owner_of_mounts(number);
        }
        sandbox.ended_leaders = ns::pids::ended_leaders(&held.tree, &processes);
        for (number, mut record) in ipc::dump((&held.tree, &processes), &mut contents, refusals)? {
            record.posix = files.queues.remove(&number).unwrap_or_default();
            match (number as usize).checked_sub(1) {
                None => sandbox.ipc_objects = record,
                Some(place) => sandbox.namespaces[place].contents = NamespaceContents::Ipc(record),
            }
        }
        // What was refused is missing, and then nothing can be said of the rest.
        if refusals.is_empty()
            && let Err(error) = can_be_made(&processes, &sandbox)
        {
            refuse_relation(&held.tree, &error, refusals);
        }
        // Where something was refused nobody needs them.
        if refusals.is_empty() {
            contents.read_heads()?;
        }
        let bytes = pages.values().sum::<u64>() * 4096 + contents.sources.iter().map(|source| source.size).sum::<u64>();
        let (header, vdso) = header(held)?;
        Ok(Self {
            header,
            machine: machine(target, vdso),
            sandbox,
            processes,
            spaces,
            contents,
            files,
            mounts,
            networks,
            _streams: streams,
            bytes,
            pages,
            not_looked_at,
            seen,
        })
    }

    /// Looks at pages that were to be looked at in a copy, as there is none of this process.
    pub fn look_at_pages(&mut self, held: &HeldTree, found: &FoundProcess) -> Result<(), ContentError> {
        let space = self.spaces.iter_mut().find(|space| space.pid.0 == found.ns_pid);
        if let Some(space) = space.filter(|_| self.not_looked_at.remove(&found.ns_pid)) {
            let mappings = mappings_of(&held.mappings, found);
            let tables = PageTables::read(found.task(), mappings, mm::shows_in_a_copy)?;
            tables.note_guards(found, space, &mut self.contents);
        }
        Ok(())
    }

    /// How many pages a process has of its own.
    pub fn pages_of(&self, process: i32) -> u64 {
        self.pages.get(&process).copied().unwrap_or(0)
    }

    /// Where its children are born.
    pub fn pids_of_children(&self, process: i32) -> Option<PidsOfChildren> {
        let record = self.processes.iter().find(|record| record.pid.0 == process)?;
        Some(record.pids_of_children)
    }
}

fn can_be_made(processes: &[ProcessRecord], sandbox: &SandboxRecord) -> Result<(), PlanError> {
    let numbering = Numbering::new(&sandbox.pid_namespaces, &sandbox.ended_leaders, processes);
    plan(processes, (sandbox.has_init, &numbering), &BTreeSet::new()).map(drop)
}

/// Relations of processes that no order of forks brings about.
fn refuse_relation(tree: &FoundTree, error: &PlanError, refusals: &mut Refusals) {
    let subject = |pid: i32| {
        let found = tree.processes.iter().find(|process| process.ns_pid == pid);
        found.map(FoundProcess::subject)
    };
    match *error {
        PlanError::Session { pid, session, parent } => refusals.add(
            subject(pid).as_ref(),
            format!("session {session} below process {parent}"),
            "the parent never was in it, and no longer adopts whom others leave behind",
            "let it be a subreaper again (PR_SET_CHILD_SUBREAPER), or end its child",
        ),
        PlanError::Shared { pid, parent, session } => refusals.add(
            subject(pid).as_ref(),
            format!("state shared with process {parent}, which adopted it in session {session}"),
            "the parent can't fork it there",
            "use threads, or end it",
        ),
        PlanError::Group { pid, group, .. } => refusals.add(
            subject(pid).as_ref(),
            format!("process group {group} of another PID namespace"),
            "its parent could not have put it there",
            "give it a group of its own (setpgid)",
        ),
        PlanError::Namespace { pid, by } => refusals.add(
            subject(pid).as_ref(),
            "PID namespace of its own",
            format!("process {by}, which is to fork it, can't fork it there"),
            "end it, or start it from the namespace above",
        ),
        PlanError::Differs(pid) => refusals.add(
            subject(pid).as_ref(),
            "its parent, session or group",
            "it would come to others in any order of forks that floe knows",
            "end it, or what it was left behind by",
        ),
        PlanError::NoRoot | PlanError::Impossible(_) | PlanError::Unreachable(_) => {
            refusals.add(
                None,
                "the tree",
                error.to_string(),
                "end what was put into it from outside",
            );
        }
    }
}

fn task_error(found: &FoundProcess, source: DumpError) -> InspectError {
    InspectError::Task {
        task: found.subject().to_string(),
        source: Box::new(source),
    }
}

impl HeldTree {
    /// A process with its threads.
    pub fn process<'a>(&'a self, found: &'a FoundProcess) -> HeldProcess<'a> {
        let threads: Vec<&Stopped> = found
            .threads
            .iter()
            .filter_map(|thread| self.threads.get(&thread.tid))
            .collect();
        HeldProcess {
            found,
            threads,
            mappings: mappings_of(&self.mappings, found),
            sleepers: &self.sleepers,
        }
    }
}

/// The working or root directory of a process.
fn directory(
    name: &'static str,
    found: &FoundProcess,
    contents: &mut Contents,
    refusals: &mut Refusals,
) -> Result<DirectoryRecord, InspectError> {
    let magic = format!("/proc/{}/{name}", found.task());
    let found = contents.directory((found.task(), &magic), name, (&found.subject(), refusals))?;
    // What was refused is in no image.
    Ok(found.unwrap_or_default())
}

/// The controlling terminal of a session leader: one of the tree's, or the sandbox's own, as any other one's other end
/// would be lost.
fn terminal(
    tree: &FoundTree,
    found: &FoundProcess,
    (links, sessions): (&ConsoleLinks, &HashMap<Pid, u32>),
    refusals: &mut Refusals,
) -> Option<TerminalLink> {
    let has_leader = || tree.living().any(|process| process.ns_pid == found.ns_sid);
    if found.stat.tty_nr != 0 && found.ns_sid > 0 && !has_leader() {
        refusals.add(
            Some(&found.subject()),
            "controlling terminal",
            "the leader of its session, through which it has the terminal, is outside of the tree",
            "checkpoint the tree of the leader, or with --tty current; or start the workload with setsid or floe run -t",
        );
        return None;
    }
    if found.ns_sid != found.ns_pid || found.stat.tty_nr == 0 {
        return None;
    }
    let pair = sessions.get(&found.pid).copied();
    if pair.is_none() && !tty::has_for_session(found, links) {
        refusals.add(
            Some(&found.subject()),
            "controlling terminal",
            "a terminal whose other end is outside of the tree can't be carried",
            "start the workload with floe run -t, or with setsid; --tty current for the terminal that it was started on",
        );
        return None;
    }
    Some(TerminalLink {
        pair,
        foreground: foreground(tree, found),
    })
}

/// The foreground group of the terminal of a process's session, where the tree has it.
fn foreground(tree: &FoundTree, found: &FoundProcess) -> NsPid {
    // A number of floe's namespace; any member tells the inner one.
    let group = |process: &&FoundProcess| process.stat.pgrp == found.stat.tpgid;
    let member = tree.processes.iter().find(group);
    NsPid(member.map_or(0, |member| member.ns_pgid))
}

fn sandbox(
    (held, cgroups): (&HeldTree, &FoundCgroups),
    target: &Target,
    (streams, files, others): (&Streams, &Collected, &Others),
    (contents, refusals): (&mut Contents, &mut Refusals),
) -> Result<(SandboxRecord, FoundMounts, Vec<NetworkRecord>), InspectError> {
    let (name, command) = match target {
        Target::Sandbox { name, command, .. } => (name.clone(), command.clone()),
        Target::Tree { .. } => (String::new(), Vec::new()),
    };
    let host = (NamespaceOrigin::Host, String::new(), String::new());
    let found = ns::find((&held.tree, others, cgroups), (contents, refusals))?;
    let (uts, ipc, net, cgroup, mount, devpts, mounts) = match found {
        Some(ns) => (ns.uts, ns.ipc, ns.net, ns.cgroup, ns.mount, ns.devpts, ns.mounts),
        None => (
            host,
            NamespaceOrigin::Host,
            NamespaceOrigin::Host,
            NamespaceOrigin::Host,
            NamespaceOrigin::Host,
            NamespaceOrigin::Host,
            FoundMounts::default(),
        ),
    };
    let going_with = (&files.devices, target.link().map(|_| LINK_INSIDE));
    let networks = ns::network::find(others, net, going_with, refusals)?;
    let has_init = held.tree.root().is_some_and(|root| root.ns_pid == 1);
    // The number of a terminal is another one's in the host's.
    let devpts = match streams.record {
        ConsoleRecord::Terminal(_) => NamespaceOrigin::Own,
        _ => devpts,
    };
    let record = SandboxRecord {
        name,
        uts,
        ipc,
        net,
        cgroup,
        mount,
        devpts,
        has_init,
        namespaces: others.records(cgroups, refusals)?,
        pid_namespaces: ns::pids::records(&held.tree, others),
        ended_leaders: Vec::new(),
        console: streams.record(&files.input),
        log: streams.log,
        command,
        clocks: clocks(held.tree.root().map_or(target.root(), FoundProcess::task))?,
        login: task::login(&held.tree, refusals)?,
        ipc_objects: IpcRecord::default(),
        sysctls: Vec::new(),
        cgroups: Vec::new(),
        link: link_record(target, networks.first()),
    };
    Ok((record, mounts, networks))
}

/// What joins the tree's network to the host's.
fn link_record(target: &Target, network: Option<&NetworkRecord>) -> Option<LinkRecord> {
    let link = target.link()?;
    // The tree may have removed it.
    let mut devices = network?.devices.iter();
    let is_there = devices.any(|device| device.inherited && device.name == LINK_INSIDE.as_bytes());
    is_there.then(|| LinkRecord {
        address: link.address.octets(),
        published: link
            .published
            .iter()
            .map(|port| PublishedRecord {
                udp: port.udp,
                host: port.host,
                inside: port.inside,
            })
            .collect(),
    })
}

/// Read when all timers have been, so that none can have fired at a time that the restored tree has yet to see.
fn clocks(root: Pid) -> Result<ClocksRecord, ProcError> {
    let seen = Clocks::seen_by(&root.to_string())?;
    Ok(ClocksRecord {
        monotonic: seen.monotonic.max(0) as u64,
        boottime: seen.boottime.max(0) as u64,
    })
}
