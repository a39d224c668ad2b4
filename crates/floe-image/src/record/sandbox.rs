//! What the image as a whole is, and the sandbox the tree lived in.

use super::{
    ClocksRecord, EndedLeaderRecord, HierarchyRecord, IpcRecord, NamespaceContents, NamespaceRecord,
    PidNamespaceRecord, SysctlRecord, TerminalRecord,
};
use serde::{Deserialize, Serialize};

/// Where and how the image was made. Checked before anything else is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderRecord {
    /// Version of floe that wrote it, for people.
    pub floe_version: String,
    /// Machine architecture as `uname -m` names it.
    pub arch: String,
    /// `uname -r` of the source host.
    pub kernel: String,
    /// Host name of the source host.
    pub host: String,
    /// Seconds since 1970 UTC.
    pub created: u64,
    /// Bytes in a page.
    pub page_size: u32,
    /// Bytes of the xstate regset (NT_X86_XSTATE) of a task.
    pub xstate_size: u32,
    /// The XCR0 mask of the source host's xstate components.
    pub xfeatures: u64,
    /// The vDSO the tree was linked to.
    pub vdso: VdsoRecord,
}

/// The vDSO of the source kernel, as far as a restoring host must match it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VdsoRecord {
    /// Name and bytes of each special mapping, lowest address first, e.g. `[vvar]`, `[vvar_vclock]`, `[vdso]`.
    pub mappings: Vec<(String, u64)>,
    /// crc32c of the vDSO's text.
    pub checksum: u32,
}

/// Whether a namespace of the tree was the host's or the sandbox's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceOrigin {
    /// The one floe itself ran in.
    Host,
    /// The sandbox's own.
    Own,
}

/// How the workload's standard streams reach the monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleRecord {
    /// None: the tree was not started by floe.
    None,
    /// Pipes to the monitor, which keeps the log.
    Pipes {
        /// Standard input, where it is such a pipe too (else /dev/null).
        stdin: Option<InputRecord>,
    },
    /// A pseudo-terminal whose master the monitor holds.
    Terminal(TerminalRecord),
}

/// What was on its way to the workload's standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRecord {
    /// Bytes in the pipe and in the monitor's hands, in this order.
    #[serde(with = "serde_bytes")]
    pub waiting: Vec<u8>,
    /// Whether the end of the input follows.
    pub ended: bool,
}

/// The pair of devices that joins a sandbox's network to the host's: `eth0` inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// The sandbox's address (IPv4); the host's is the one before.
    pub address: [u8; 4],
    /// Ports of the host that are the sandbox's.
    pub published: Vec<PublishedRecord>,
}

/// A port of the host that is one of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedRecord {
    /// Whether it is one of UDP, not of TCP.
    pub udp: bool,
    /// The host's.
    pub host: u16,
    /// The sandbox's.
    pub inside: u16,
}

/// The sandbox: its name and namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Name at the time of the checkpoint; empty for a tree that floe did not start.
    pub name: String,
    /// UTS namespace: origin, host name, NIS domain name.
    pub uts: (NamespaceOrigin, String, String),
    /// IPC namespace.
    pub ipc: NamespaceOrigin,
    /// Network namespace; an own one holds the loopback device alone.
    pub net: NamespaceOrigin,
    /// Cgroup namespace.
    pub cgroup: NamespaceOrigin,
    /// Mount namespace; an own one is the host's mounts with a private /proc.
    pub mount: NamespaceOrigin,
    /// The devpts at /dev/pts.
    pub devpts: NamespaceOrigin,
    /// Whether PID 1 of the namespace is part of the tree. If not, restore puts a small reaping init there.
    pub has_init: bool,
    /// Namespaces that other tasks than the root are in.
    pub namespaces: Vec<NamespaceRecord>,
    /// PID namespaces below the tree's own.
    pub pid_namespaces: Vec<PidNamespaceRecord>,
    /// Processes of these that have ended, but whose ids are in use.
    pub ended_leaders: Vec<EndedLeaderRecord>,
    /// The standard streams.
    pub console: ConsoleRecord,
    /// Bytes of its log, which is in the page store; `None` for a tree that floe did not start.
    pub log: Option<u64>,
    /// The command line it was started with, for people.
    pub command: Vec<String>,
    /// The tree's clocks, which go on from there.
    pub clocks: ClocksRecord,
    /// The user whose login all its tasks descend from (`/proc/PID/loginuid`, of audit); 4294967295 for none.
    pub login: u32,
    /// Objects of an own IPC namespace.
    pub ipc_objects: IpcRecord,
    /// Settings of its namespaces.
    pub sysctls: Vec<SysctlRecord>,
    /// What is set in its cgroups, one for each hierarchy where something is.
    pub cgroups: Vec<HierarchyRecord>,
    /// What joins an own network namespace to the host's.
    pub link: Option<LinkRecord>,
}

impl SandboxRecord {
    /// What is in each IPC namespace of the tree, by number; in that of the root nothing where it is the host's.
    pub fn ipc_namespaces(&self) -> impl Iterator<Item = (u32, &IpcRecord)> {
        let others = (1..)
            .zip(&self.namespaces)
            .filter_map(|(number, record)| match &record.contents {
                NamespaceContents::Ipc(objects) => Some((number, objects)),
                _ => None,
            });
        std::iter::once((0, &self.ipc_objects)).chain(others)
    }

    /// What is in an IPC namespace of the tree.
    #[must_use]
    pub fn ipc_namespace(&self, number: u32) -> Option<&IpcRecord> {
        let Some(place) = number.checked_sub(1) else {
            return Some(&self.ipc_objects);
        };
        match &self.namespaces.get(place as usize)?.contents {
            NamespaceContents::Ipc(objects) => Some(objects),
            _ => None,
        }
    }
}
