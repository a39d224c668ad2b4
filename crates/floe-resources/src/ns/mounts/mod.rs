//! Mounts of a tree's own mount namespace, as far as they differ from those that a new sandbox has by itself.
//!
//! ```text
//! dump:     baseline (which are there anyway) -> seen (a private copy of the namespace, laid bare mount by mount) -> find
//! restore:  populate (filesystems, mounted nowhere) -> make (inside the new sandbox, parents first) -> compare
//! ```
//! Nothing that a workload has made is followed: places are opened on the mount that they are on, without symbolic links.

mod baseline;
mod compare;
mod copied;
mod filesystems;
mod find;
mod given;
mod groups;
mod inherited;
mod kept;
mod leaders;
mod locked;
mod make;
mod namespaces;
mod nodes;
mod options;
mod parts;
mod populate;
mod seen;
mod shape;
mod trees;
mod views;

pub use compare::{InodeOf, differences};
pub use filesystems::new_filesystem;
pub use find::{FoundMounts, find};
pub use given::{Given, GivenError, given_mount};
pub(in crate::ns) use kept::kept;
pub use make::{CgroupView, CgroupViews, MountError, Mounting, missing};
pub use populate::{Fill, populate};
pub(in crate::ns) use views::Views;
