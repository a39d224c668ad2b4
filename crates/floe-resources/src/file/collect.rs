//! Reads all descriptors of the tree and what is on its way through sockets, finds out which share an open file
//! description, and saves each of those once.

use super::{
    DumpContext, Externals, FileError, FoundFile, KINDS, PATH_KINDS, external,
    found::Finder,
    locks::{self, FoundLocks},
    notices,
    queue::FoundQueues,
    signals,
    socket::{Ending, Held, Keeper, TcpMode},
    unsupported,
};
use crate::{
    cgroup::FoundCgroups,
    ns::{Others, network::Carried},
    refusal::Refusals,
    task::Sharing,
    tree::{FoundProcess, FoundTree},
};
use floe_image::record::{
    DescriptorRecord, DescriptorTableRecord, FileSignals, IN_FLIGHT, NsPid, ObjectRecord, OpenFileRecord,
    PosixQueueRecord,
};
use floe_sys::{
    Pid,
    kcmp::{self, Resource},
    procfs,
};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap, HashSet},
    os::unix::fs::MetadataExt,
    rc::Rc,
};

/// What was found.
pub struct Collected {
    /// Open file descriptions.
    pub files: Vec<OpenFileRecord>,
    /// Which process has which at which number.
    pub tables: Vec<DescriptorTableRecord>,
    /// What they share.
    pub objects: Vec<ObjectRecord>,
    /// What is in the pipe that is the sandbox's standard input.
    pub input: Vec<u8>,
    /// POSIX message queues of the tree's own IPC namespaces, by the numbers of these.
    pub queues: BTreeMap<u32, Vec<PosixQueueRecord>>,
    /// Packets of TCP connections that are held back.
    held: Option<Held>,
    keeper: Rc<Keeper>,
    /// Duplicates of files that are only on their way through sockets: contents are read from them.
    _flying: Vec<FoundFile>,
    /// Network devices that go with the tree's files.
    pub devices: Carried,
    /// Leaders of sessions, and which of the tree's terminals controls each.
    pub sessions: HashMap<Pid, u32>,
}

impl Collected {
    /// Holds back packets that are held back now also when floe has ended, if the process `root` is killed; `None` where
    /// there are none.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn hold_on(&self, root: Pid) -> Result<Option<Ending<'_>>, FileError> {
        self.held.as_ref().map(|held| held.stay(&self.keeper, root)).transpose()
    }
}

/// How descriptors are to be saved.
#[derive(Debug, Clone, Copy)]
pub struct CollectOptions<'a> {
    /// The tree's cgroups.
    pub cgroups: &'a FoundCgroups,
    /// Look through all other processes of the host for holders of the tree's pipes, which a sandbox does not need.
    pub search_outside: bool,
    /// What becomes of TCP connections whose other ends are outside.
    pub tcp: TcpMode,
    /// How the tree's network is joined to floe's own, where it is.
    pub joined: Option<&'a floe_sys::netfilter::Way>,
    /// Its address and the program that is between the two, where one is.
    pub carrier: Option<(std::net::Ipv4Addr, &'static str)>,
    /// What the user says of ends and files outside.
    pub external: &'a Externals,
}

/// Reads the descriptors of all living processes of a tree, once where some share them.
///
/// # Errors
/// [`FileError`].
pub fn collect(
    (tree, sharing, others): (&FoundTree, &Sharing, &Others),
    console: &super::ConsoleLinks,
    contents: &mut crate::mm::Contents,
    refusals: &mut Refusals,
    options: CollectOptions<'_>,
) -> Result<Collected, FileError> {
    let console = &console.seen(contents);
    let memory = super::memory::Memory::default();
    let processes = tree.living().map(|process| (process.pid, process.ns_pid)).collect();
    let queues = FoundQueues::survey(&contents.ipc, &processes, (&memory, refusals))?;
    let terminals = super::terminal::FoundTerminals::new(contents.spaces.root(0), console.terminal.as_deref());
    let shown = super::proc::Shown::find(contents, tree);
    let mut context = DumpContext {
        console,
        others,
        external: options.external,
        cgroups: options.cgroups,
        terminals,
        contents,
        refusals,
        objects: Vec::new(),
        input: Vec::new(),
        pipes: super::pipe::FoundPipes::default(),
        epolls: Vec::new(),
        unix: super::socket::FoundUnix::default(),
        connections: super::socket::FoundConnections::new(options.tcp, options.joined.cloned(), options.carrier),
        keeper: Rc::default(),
        usual: super::socket::UsualOptions::default(),
        memory,
        queues,
        maps: super::bpf_map::FoundMaps::default(),
        tuns: super::tun::FoundTuns::default(),
        processes: Rc::new(processes),
        tasks: tree.all_seen_from(0),
        shown,
        groups: tree
            .living()
            .filter(|process| process.ns_pgid > 0)
            .map(|process| (Pid::new(process.stat.pgrp), process.ns_pgid))
            .collect(),
    };
    let mut known = KnownFiles::default();
    let mut tables = Vec::new();
    let mut found_locks = FoundLocks::default();
    let own_table = |process: &&FoundProcess| !sharing.shares(process, libc::CLONE_FILES);
    for process in tree.living().filter(own_table) {
        let subject = process.subject();
        let task = process.task();
        let (mut descriptors, mut notices) = (Vec::new(), Vec::new());
        let mut finder = Finder::new(task)?;
        for number in procfs::descriptors(task)? {
            let mut found = finder.own(&subject, number)?;
            let close_on_exec = found.info.flags & libc::O_CLOEXEC as u32 != 0;
            let held = locks::held(&found, context.contents, context.refusals);
            if let Some(file) = known.number_of(&mut found, &mut context)?.0 {
                found_locks.add((tables.len(), process.pid, number), (&found, file), held);
                notices.extend(notices::asked_by(process.pid, &found, &context.memory)?);
                descriptors.push(DescriptorRecord {
                    number,
                    file,
                    close_on_exec,
                });
            }
        }
        tables.push(DescriptorTableRecord {
            pid: NsPid(process.ns_pid),
            descriptors,
            locks: Vec::new(),
            notices,
        });
    }
    let flying = on_their_way(&mut known, &mut context, (&mut tables, &mut found_locks))?;
    for link in options.external.unused(|link| known.external.contains(link)) {
        let reason = "no file of the tree that could stay outside (--external) has this link in /proc/PID/fd";
        let title = String::from_utf8_lossy(link);
        context
            .refusals
            .add(None, title, reason, "see what floe checkpoint --dry-run tells");
    }
    let inside: HashSet<Pid> = tree.living().map(|process| process.pid).collect();
    context
        .pipes
        .refuse_outside_ends(&inside, options.search_outside, context.refusals)?;
    context.unix.settle_outside(&inside, options.external, context.refusals);
    context.maps.refuse_shared(context.refusals);
    context.tuns.refuse_shared(context.refusals);
    let super::terminal::ResolvedTerminals { objects, sessions } =
        context.terminals.resolve(&inside, context.refusals)?;
    context.objects.extend(objects);
    let holders: Vec<_> = known.buckets.into_values().flatten().collect();
    super::socket::resolve_unix(
        &mut context.unix,
        &super::socket::Known::new(&context.memory, &context.processes, &holders),
        (&mut known.records, context.refusals),
    )?;
    let held = super::socket::resolve_tcp(
        (&context.connections, &*context.keeper, &context.memory),
        &mut known.records,
        context.refusals,
    )?;
    super::epoll::resolve(&context.epolls, &mut known.records, &holders, context.refusals)?;
    found_locks.put_into(&mut tables);
    Ok(Collected {
        files: known.records,
        tables,
        objects: context.objects,
        input: context.input,
        queues: context.queues.into_records(),
        held,
        keeper: context.keeper,
        _flying: flying,
        devices: context.tuns.all().cloned().collect(),
        sessions,
    })
}

/// Looks at what waits in unix sockets, where more files may be, and more sockets among them. Those that no process has
/// are those of a table without a process.
fn on_their_way(
    known: &mut KnownFiles,
    context: &mut DumpContext<'_>,
    (tables, found_locks): (&mut Vec<DescriptorTableRecord>, &mut FoundLocks),
) -> Result<Vec<FoundFile>, FileError> {
    if context.unix.socket(0).is_none() {
        return Ok(Vec::new());
    }
    let own = Pid::new(std::process::id() as i32);
    let mut finder = Finder::new(own)?;
    let (mut held_files, mut descriptors) = (Vec::new(), Vec::new());
    for index in 0.. {
        let Some(socket) = context.unix.socket(index) else {
            break;
        };
        let mut take = |file, context: &mut DumpContext<'_>| {
            let through = (&socket.subject, socket.viewer, socket.title.as_str());
            let mut found = finder.on_its_way(through, file)?;
            let held = locks::held(&found, context.contents, context.refusals);
            let (file, is_new) = known.number_of(&mut found, context)?;
            if !is_new {
                return Ok(file);
            }
            if let Some(file) = file {
                let number = descriptors.len() as i32;
                found_locks.add((tables.len(), own, number), (&found, file), held);
                descriptors.push(DescriptorRecord {
                    number,
                    file,
                    close_on_exec: false,
                });
            }
            // What is known is compared with by its number.
            held_files.push(found);
            Ok(file)
        };
        socket.read_queue(context, &mut take)?;
    }
    if !descriptors.is_empty() {
        tables.push(DescriptorTableRecord {
            pid: IN_FLIGHT,
            descriptors,
            locks: Vec::new(),
            notices: Vec::new(),
        });
    }
    Ok(held_files)
}

/// Files that can only be the same open file description if all of this is equal.
type Bucket = (u64, u64, u64, u32, u64);

#[derive(Default)]
struct KnownFiles {
    records: Vec<OpenFileRecord>,
    /// Holders of one descriptor each of the files in a bucket, ordered by kcmp, with the file's number.
    buckets: HashMap<Bucket, Vec<(Pid, i32, Option<u32>)>>,
    /// Links of those that stay outside.
    external: HashSet<Vec<u8>>,
}

impl KnownFiles {
    /// The number of the file's description in the image, `None` where it was refused; and whether it was not known yet.
    fn number_of(
        &mut self,
        found: &mut FoundFile,
        context: &mut DumpContext<'_>,
    ) -> Result<(Option<u32>, bool), FileError> {
        let metadata = &found.metadata;
        let bucket: Bucket = (
            metadata.dev(),
            metadata.ino(),
            found.info.position,
            found.flags(),
            found.info.mount,
        );
        let known = self.buckets.entry(bucket).or_default();
        let mut failure = None;
        let place = known.binary_search_by(|(pid, number, _)| {
            let ours = (found.holder, found.number as u64);
            kcmp::compare(Resource::File, (*pid, *number as u64), ours).unwrap_or_else(|error| {
                failure = Some(error);
                Ordering::Equal
            })
        });
        if let Some(error) = failure {
            return Err(FileError::system("compare", found.title())(error));
        }
        match place {
            Ok(index) => Ok((known[index].2, false)),
            Err(index) => {
                let dumped = dump_one(found, context)?;
                let id = dumped.map(|(signals, kind, body)| {
                    if kind == external::NAME && !self.external.insert(found.link.clone()) {
                        let reason = "it is open more than once by the link that stays outside (--external), and one descriptor \
                                      that is given for it can't be all of them";
                        let advice = "close the others, or open it once and duplicate that (dup(2))";
                        let subject = Some(&found.subject);
                        context.refusals.add(subject, found.title(), reason, advice);
                    }
                    let id = self.records.len() as u32;
                    let (flags, position) = (found.flags(), found.position());
                    self.records.push(OpenFileRecord {
                        id,
                        kind,
                        version: 1,
                        flags,
                        position,
                        mount_namespace: found.mount_namespace(context.contents),
                        network: found.network.number,
                        signals,
                        body,
                    });
                    id
                });
                known.insert(index, (found.holder, found.number, id));
                Ok((id, true))
            }
        }
    }
}

/// Signals, name of its kind and body.
type Dumped = (Option<FileSignals>, String, Vec<u8>);

fn dump_one(found: &mut FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Dumped>, FileError> {
    let kinds = if found.is_path_only() { PATH_KINDS } else { KINDS };
    let Some(signals) = signals::read(found, context)? else {
        super::pipe::note_refused(found, context);
        return Ok(None);
    };
    if let Some((kind, body)) = external::dump_named(found, context)? {
        return Ok(Some((signals, kind, body)));
    }
    match super::socket::network_of(found, context.others)? {
        Ok(network) => found.network = network.unwrap_or_else(|| found.network.clone()),
        Err(reason) => {
            let subject = Some(&found.subject);
            context.refusals.add(subject, found.title(), reason, "close it");
            return Ok(None);
        }
    }
    let found = &*found;
    let mut claims = kinds.iter().filter(|kind| kind.claims(found, context.console));
    match (claims.next(), claims.next()) {
        (Some(kind), None) => {
            let body = kind.dump(found, context)?;
            Ok(body.map(|body| (signals, kind.name().to_owned(), body)))
        }
        (Some(one), Some(other)) => Err(FileError::Unknown {
            id: found.number as u32,
            what: format!(
                "{} is claimed by two kinds, {} and {}",
                found.title(),
                one.name(),
                other.name()
            ),
        }),
        (None, _) => {
            let (reason, advice) = unsupported::reason(found);
            context
                .refusals
                .add(Some(&found.subject), found.title(), reason, advice);
            Ok(None)
        }
    }
}
