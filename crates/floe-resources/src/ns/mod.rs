//! What the tree's namespaces are and hold: which are the host's, and what in them can't be carried yet.

mod contents;
mod held;
pub(crate) mod inside;
mod known;
pub mod mounts;
pub mod network;
mod others;
pub mod packet_filter;
pub mod pids;
mod roots;
mod spaces;
pub mod sysctl;

pub use contents::{make as make_namespace, set_clocks};
pub use held::Held;
pub use inside::{NsError, root_directory, run as run_inside};
pub(crate) use inside::{run_in, stand_inside};
pub use known::Known;
pub use mounts::FoundMounts;
pub use network::NetworkSpace;
pub use others::Others;
pub use roots::Roots;
pub use spaces::MountSpaces;

use crate::{cgroup::FoundCgroups, mm::Contents, refusal::Refusals, tree::FoundTree};
use floe_image::record::NamespaceOrigin;
use floe_sys::Pid;
use nix::sched::CloneFlags;

/// The namespaces of a tree.
#[derive(Debug)]
pub struct FoundNamespaces {
    /// UTS: origin, host name, domain name.
    pub uts: (NamespaceOrigin, String, String),
    /// IPC.
    pub ipc: NamespaceOrigin,
    /// Network.
    pub net: NamespaceOrigin,
    /// Cgroup.
    pub cgroup: NamespaceOrigin,
    /// Mount.
    pub mount: NamespaceOrigin,
    /// No namespace: the devpts at /dev/pts.
    pub devpts: NamespaceOrigin,
    /// What is mounted.
    pub mounts: FoundMounts,
}

/// Looks at the namespaces of the tree's root. Where contents are to be read goes to `contents`.
///
/// # Errors
/// [`NsError`].
pub fn find(
    (tree, others, cgroups): (&FoundTree, &Others, &FoundCgroups),
    (contents, refusals): (&mut Contents, &mut Refusals),
) -> Result<Option<FoundNamespaces>, NsError> {
    let Some(root) = tree.root() else { return Ok(None) };
    let pid = root.task();
    let mut found = FoundNamespaces {
        uts: uts(pid)?,
        ipc: origin(pid, "ipc")?,
        net: origin(pid, "net")?,
        cgroup: origin(pid, "cgroup")?,
        mount: origin(pid, "mnt")?,
        devpts: NamespaceOrigin::Host,
        mounts: FoundMounts::default(),
    };
    found.mounts = mounts::find((tree, others, cgroups), contents, refusals)?;
    if found.mounts.has_devpts {
        found.devpts = NamespaceOrigin::Own;
    }
    Ok(Some(found))
}

/// Whether the namespace `name` (as in /proc/PID/ns) of a task is floe's own.
pub(crate) fn origin(pid: Pid, name: &str) -> Result<NamespaceOrigin, NsError> {
    let link = |who: String| {
        let path = format!("/proc/{who}/ns/{name}");
        std::fs::read_link(&path).map_err(|source| NsError::Read { path, source })
    };
    let same = link(pid.to_string())? == link("self".to_owned())?;
    Ok(if same {
        NamespaceOrigin::Host
    } else {
        NamespaceOrigin::Own
    })
}

fn uts(pid: Pid) -> Result<(NamespaceOrigin, String, String), NsError> {
    let (host, domain) = inside::run(pid, CloneFlags::CLONE_NEWUTS, contents::names)?;
    let text = |name: Vec<u8>| String::from_utf8_lossy(&name).into_owned();
    Ok((origin(pid, "uts")?, text(host), text(domain)))
}
