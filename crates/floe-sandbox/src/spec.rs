//! What a sandbox is to be.

use crate::{Mounts, WindowSize, account::RunAs, link::LinkSpec, processor::ProcessorState};
use floe_cgroup::Limits;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;

/// Whether a namespace is the host's or the sandbox's own. The PID namespace is always its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Origin {
    /// The host's.
    Host,
    /// Its own.
    #[default]
    Own,
}

/// Where the standard streams lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Console {
    /// Output and error are pipes to the monitor; input is one too, or /dev/null.
    Pipes {
        /// Whether there is input.
        stdin: bool,
    },
    /// A pseudo-terminal whose master the monitor holds.
    Terminal {
        /// Size of its window.
        window: WindowSize,
        /// Its number: it is /dev/pts/N.
        index: u32,
    },
}

/// A sandbox to be made.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Its name; one is made up where `None`.
    pub name: Option<String>,
    /// The command: program and arguments.
    pub command: Vec<OsString>,
    /// The whole environment, `NAME=VALUE`.
    pub env: Vec<OsString>,
    /// Working directory; the caller's where `None`.
    pub workdir: Option<OsString>,
    /// Host name, in an own UTS namespace; the sandbox's name where `None`.
    pub hostname: Option<String>,
    /// NIS domain name, in an own UTS namespace; the caller's where `None`.
    pub domainname: Option<String>,
    /// UTS namespace.
    pub uts: Origin,
    /// IPC namespace.
    pub ipc: Origin,
    /// Network namespace; an own one has the loopback device alone, and what `link` says.
    pub net: Origin,
    /// What joins an own network namespace to the host's.
    pub link: Option<LinkSpec>,
    /// Cgroup namespace.
    pub cgroup: Origin,
    /// Mount namespace; an own one has a private /proc.
    pub mount: Origin,
    /// Terminals (devpts), in an own mount namespace; with a terminal of its own a sandbox always has its own.
    pub devpts: Origin,
    /// What is mounted besides, in an own mount namespace.
    pub mounts: Mounts,
    /// Whom the command runs as; the caller where `None`.
    pub run_as: Option<RunAs>,
    /// How many PID namespaces, one in the other, the command is in: 1 is the sandbox's own alone.
    pub pid_depth: u32,
    /// Run the command as PID 2 below a small init that reaps orphans and forwards signals.
    pub init: bool,
    /// What its programs may find out about the processor, or may have before they came here.
    pub processor: ProcessorState,
    /// What it may take.
    pub limits: Limits,
    /// Controllers whose cgroups it needs besides, or `name=` and the name of a version 1 hierarchy.
    pub controllers: Vec<String>,
    /// Streams.
    pub console: Console,
    /// Remove all trace of it when it ends.
    pub remove: bool,
}

impl Default for SandboxSpec {
    fn default() -> Self {
        Self {
            name: None,
            command: Vec::new(),
            env: Vec::new(),
            workdir: None,
            hostname: None,
            domainname: None,
            uts: Origin::Own,
            ipc: Origin::Own,
            net: Origin::Host,
            link: None,
            cgroup: Origin::Own,
            mount: Origin::Own,
            devpts: Origin::Host,
            mounts: Mounts::default(),
            run_as: None,
            pid_depth: 1,
            init: false,
            processor: ProcessorState::default(),
            limits: Limits::default(),
            controllers: Vec::new(),
            console: Console::Pipes { stdin: false },
            remove: false,
        }
    }
}

impl SandboxSpec {
    /// Whether it has a devpts of its own, as every one that does not see the host's.
    pub(crate) fn has_devpts(&self) -> bool {
        self.devpts == Origin::Own || self.mounts.root.is_some() || matches!(self.console, Console::Terminal { .. })
    }

    /// The controllers that it needs cgroups of.
    pub(crate) fn controllers(&self) -> Vec<String> {
        let mut all = self.limits.controllers();
        let more = self.controllers.iter().filter(|controller| !all.contains(controller));
        all.extend(more.cloned().collect::<Vec<_>>());
        all
    }

    /// CLONE_NEW* flags of its namespaces.
    pub(crate) fn namespaces(&self) -> u64 {
        let own = [
            (self.uts, libc::CLONE_NEWUTS),
            (self.ipc, libc::CLONE_NEWIPC),
            (self.net, libc::CLONE_NEWNET),
            (self.mount, libc::CLONE_NEWNS),
        ];
        // The cgroup namespace is entered by PID 1 itself, once it is in its cgroup, which becomes the root it sees.
        let flags = own
            .iter()
            .filter(|(origin, _)| *origin == Origin::Own)
            .map(|(_, flag)| *flag as u64);
        flags.fold(libc::CLONE_NEWPID as u64, |all, flag| all | flag)
    }
}
