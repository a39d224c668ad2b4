//! Reads all state of a held tree but page contents, and finds all that can't be carried.

use super::{Target, seize::HeldTree};
use crate::stage::{Control, StageError};
use floe_image::record::{
    AddressSpaceRecord, ConsoleRecord, HeaderRecord, NamespaceOrigin, NsPid, ProcessRecord, SandboxRecord,
    TerminalLink, VdsoRecord,
};
use floe_resources::{
    file::{self, Collected, ConsoleLinks, FileError},
    mm::{self, ContentError, Contents},
    ns::{self, NsError},
    refusal::Refusals,
    task::{self, DumpError, HeldProcess},
    tree::FoundProcess,
};
use floe_sys::{Pid, memory::MemoryFile, procfs::ProcError};
use floe_tracee::{Stopped, vdso_tail, xfeatures};
use std::{
    io,
    os::unix::ffi::OsStringExt,
    time::{SystemTime, UNIX_EPOCH},
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
    pub sandbox: SandboxRecord,
    pub processes: Vec<ProcessRecord>,
    pub spaces: Vec<AddressSpaceRecord>,
    pub contents: Contents,
    pub files: Collected,
    /// Bytes of pages to be written.
    pub bytes: u64,
}

impl Inspected {
    /// Reads it.
    pub fn read(
        held: &HeldTree,
        target: &Target,
        refusals: &mut Refusals,
        control: &Control<'_>,
    ) -> Result<Self, InspectError> {
        let no_links = ConsoleLinks::default();
        let (links, console) = match target {
            Target::Sandbox { links, console, .. } => (links, console.clone()),
            Target::Tree { .. } => (&no_links, ConsoleRecord::None),
        };
        task::refuse_unsupported(&held.tree, refusals)?;
        let mut contents = Contents::default();
        let mut processes = Vec::with_capacity(held.tree.processes.len());
        let mut spaces = Vec::new();
        let mut pages = 0;
        for found in &held.tree.processes {
            control.check("inspect")?;
            if found.is_zombie() {
                processes.push(task::dump_zombie(found, refusals).map_err(|e| task_error(found, e))?);
                continue;
            }
            let process = held.process(found);
            if !task::runs_calls(&process, refusals).map_err(|e| task_error(found, e))? {
                continue;
            }
            let (mut record, brk) = task::dump_process(&process, refusals).map_err(|e| task_error(found, e))?;
            (record.cwd, record.root) = (
                link(found.pid, "cwd", refusals, found)?,
                link(found.pid, "root", refusals, found)?,
            );
            record.terminal = terminal(found, links);
            spaces.push(mm::address_space(&process, brk, &mut contents, refusals)?);
            pages += mm::count_pages(&process, refusals)?;
            processes.push(record);
        }
        let search = matches!(target, Target::Tree { .. });
        let files = file::collect(&held.tree, links, &mut contents, refusals, search)?;
        let sandbox = sandbox(held, target, links, console, refusals)?;
        let bytes = pages * 4096 + contents.sources.iter().map(|source| source.size).sum::<u64>();
        let header = header(held, &processes)?;
        Ok(Self {
            header,
            sandbox,
            processes,
            spaces,
            contents,
            files,
            bytes,
        })
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
        let mappings = self.mappings.get(&found.pid).map_or(&[][..], Vec::as_slice);
        HeldProcess {
            found,
            threads,
            mappings,
            sleepers: &self.sleepers,
        }
    }
}

fn link(pid: Pid, name: &'static str, refusals: &mut Refusals, found: &FoundProcess) -> Result<Vec<u8>, InspectError> {
    let target = std::fs::read_link(format!("/proc/{pid}/{name}"))
        .map_err(|source| InspectError::Read {
            what: name,
            pid,
            source,
        })?
        .into_os_string()
        .into_vec();
    if target.ends_with(b" (deleted)") {
        let object = format!("{name} {}", String::from_utf8_lossy(&target));
        refusals.add(
            Some(&found.subject()),
            object,
            "a deleted directory can't be carried yet",
            "change to another one",
        );
    }
    Ok(target)
}

/// The controlling terminal of a session leader: the sandbox's own is the only one that descriptors can refer to.
fn terminal(found: &FoundProcess, links: &ConsoleLinks) -> Option<TerminalLink> {
    let path = links.terminal.clone()?;
    (found.ns_sid == found.ns_pid && found.stat.tty_nr != 0).then(|| TerminalLink {
        path,
        foreground: NsPid(foreground(found)),
    })
}

fn foreground(found: &FoundProcess) -> i32 {
    // tpgid is a number of floe's namespace; the group's leader or any member tells the inner one.
    let status = floe_sys::procfs::Status::read(&format!("/proc/{}", found.stat.tpgid));
    status
        .ok()
        .and_then(|status| status.ns_pgid.last().copied())
        .unwrap_or(0)
}

fn sandbox(
    held: &HeldTree,
    target: &Target,
    links: &ConsoleLinks,
    console: ConsoleRecord,
    refusals: &mut Refusals,
) -> Result<SandboxRecord, InspectError> {
    let (name, command) = match target {
        Target::Sandbox { name, command, .. } => (name.clone(), command.clone()),
        Target::Tree { .. } => (String::new(), Vec::new()),
    };
    let host = (NamespaceOrigin::Host, String::new(), String::new());
    let found = ns::find(&held.tree, links, refusals)?;
    let (uts, ipc, net, cgroup, mount) = match found {
        Some(ns) => (ns.uts, ns.ipc, ns.net, ns.cgroup, ns.mount),
        None => (
            host,
            NamespaceOrigin::Host,
            NamespaceOrigin::Host,
            NamespaceOrigin::Host,
            NamespaceOrigin::Host,
        ),
    };
    let has_init = held.tree.root().is_some_and(|root| root.ns_pid == 1);
    Ok(SandboxRecord {
        name,
        uts,
        ipc,
        net,
        cgroup,
        mount,
        has_init,
        console,
        command,
    })
}

fn header(held: &HeldTree, processes: &[ProcessRecord]) -> Result<HeaderRecord, InspectError> {
    let extended = processes
        .iter()
        .flat_map(|process| &process.threads)
        .map(|thread| &thread.registers.extended);
    let sample = extended.clone().find(|bytes| !bytes.is_empty());
    let uname = nix::sys::utsname::uname().map_err(|source| InspectError::Read {
        what: "the kernel's name",
        pid: Pid::new(0),
        source: source.into(),
    })?;
    let text = |value: &std::ffi::OsStr| value.to_string_lossy().into_owned();
    Ok(HeaderRecord {
        floe_version: env!("CARGO_PKG_VERSION").to_owned(),
        arch: text(uname.machine()),
        kernel: text(uname.release()),
        host: text(uname.nodename()),
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs()),
        page_size: 4096,
        xstate_size: sample.map_or(0, |bytes| bytes.len() as u32),
        xfeatures: sample.map_or(0, |bytes| xfeatures(bytes)),
        vdso: vdso(held)?,
    })
}

fn vdso(held: &HeldTree) -> Result<VdsoRecord, InspectError> {
    let Some((pid, mappings)) = held.mappings.iter().next() else {
        return Ok(VdsoRecord {
            mappings: Vec::new(),
            checksum: 0,
        });
    };
    read_vdso(*pid, mappings)
}

/// The vDSO of a process: the kernel's mappings in it and the checksum of its text.
pub(crate) fn read_vdso(pid: Pid, mappings: &[floe_sys::procfs::Mapping]) -> Result<VdsoRecord, InspectError> {
    let special: Vec<_> = mappings
        .iter()
        .filter(|m| m.path.starts_with(b"[v") && m.path != b"[vsyscall]")
        .collect();
    let mut checksum = 0;
    if let Some(text) = special.iter().find(|m| m.path == b"[vdso]") {
        let wrap = |source| InspectError::Read {
            what: "the vDSO",
            pid,
            source,
        };
        let mut image = vec![0; text.len() as usize];
        MemoryFile::open(pid)
            .and_then(|memory| memory.read(text.start, &mut image))
            .map_err(wrap)?;
        let end = vdso_tail(&image).unwrap_or(image.len());
        checksum = crc32c::crc32c(&image[..end]);
    }
    let name = |m: &floe_sys::procfs::Mapping| (String::from_utf8_lossy(&m.path).into_owned(), m.len());
    Ok(VdsoRecord {
        mappings: special.into_iter().map(name).collect(),
        checksum,
    })
}
