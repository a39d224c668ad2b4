//! The tree's cgroups: what is set in its own ones and in those that it made below, and which thread is in which.
//!
//! The tree's *own* cgroup of a hierarchy is the one whose tasks are the tree's alone: a sandbox's, or that of a container
//! or service. In hierarchies where it has none its root is in one that others share; nothing of that one is the tree's. Cgroups
//! elsewhere that hold nobody but tasks of the tree come back below the new sandbox's own one (`apart.rs`).
//!
//! ```text
//! dump:     each thread's cgroups -> own one -> those below -> settings that differ from new ones
//! restore:  plan (where controllers are here) -> folders -> seed to its place -> controllers handed on, cpusets
//!           -> each process to its place before it has memory -> threads -> settings, owners, frozen ones, when all is frozen
//! ```

mod apart;
mod dump;
mod found;
pub(crate) mod knobs;
mod make;
mod plan;

pub use dump::{Own, dump};
pub use found::FoundCgroups;
pub(crate) use found::mount;
pub use make::Made;
pub use plan::{CgroupPlan, rehearse};

use std::{io, path::PathBuf};

/// A cgroup that can't be read or made again.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// /proc.
    #[error(transparent)]
    Proc(#[from] floe_sys::procfs::ProcError),
    /// Walking through or making cgroups.
    #[error(transparent)]
    Cgroup(#[from] floe_cgroup::CgroupError),
    /// The cgroup namespace.
    #[error(transparent)]
    Namespace(#[from] crate::ns::NsError),
    /// A file or directory.
    #[error("{action} {path}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// What was written is not what is read.
    #[error("{path} says {says:?} and not {wanted:?}")]
    Differs {
        /// Which file.
        path: PathBuf,
        /// What it says.
        says: String,
        /// What was written.
        wanted: String,
    },
    /// A limit that would end tasks at once.
    #[error("{path} is to be {limit}, and the tasks take {taken} bytes already")]
    TooMuch {
        /// Which file.
        path: PathBuf,
        /// The limit.
        limit: String,
        /// What is taken.
        taken: u64,
    },
    /// The image says what it can't have.
    #[error("the image is not consistent: {0}")]
    Inconsistent(String),
}

pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> TreeError {
    let path = path.into();
    move |source| TreeError::File { action, path, source }
}
