//! Every kind of state, dump and restore side by side. `task`: a task's own state; `mm`: memory; `file`: descriptors, one
//! folder a kind; `cgroup`: the tree's cgroups; `ipc`: System V IPC; `ns`: what the namespaces hold.
//!
//! Nothing here decides in which order a whole tree is saved or built: that is floe-checkpoint.

#![forbid(unsafe_code)]

pub mod cgroup;
pub mod channel;
pub mod file;
pub mod ipc;
pub mod mm;
pub mod ns;
pub mod refusal;
pub mod task;
pub mod tree;
