//! Cgroups: where the hierarchies are (mountinfo tells), which tasks are members, the freezer as a guard, and limits.
//!
//! Both kinds of freezer are served: cgroup.freeze of version 2 and freezer.state of version 1; and limits in whichever
//! hierarchy has their controllers. Documentation: Documentation/admin-guide/cgroup-v2.rst,
//! Documentation/admin-guide/cgroup-v1/.

#![forbid(unsafe_code)]

pub mod folder;
mod freezer;
mod group;
mod hierarchy;
mod limits;
mod set;
mod watcher;

pub use freezer::{Frozen, Lifted};
pub use group::{Cgroup, CgroupError, Entrance, Lock};
pub use hierarchy::{Hierarchies, Hierarchy, Kind};
pub use limits::{Cpus, Limits, Swap};
pub use set::{Cgroups, Layout};
pub use watcher::Watcher;
