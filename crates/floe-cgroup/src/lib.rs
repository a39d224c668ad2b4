//! Cgroups: where the hierarchies are (mountinfo tells), which tasks are members, and the freezer as a guard.
//!
//! Both kinds of freezer are served: cgroup.freeze of version 2 and freezer.state of version 1. Documentation:
//! Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst.

#![forbid(unsafe_code)]

mod freezer;
mod group;
mod hierarchy;
mod watcher;

pub use freezer::{Frozen, Lifted};
pub use group::{Cgroup, CgroupError, Entrance, Lock};
pub use hierarchy::{Hierarchies, Kind};
