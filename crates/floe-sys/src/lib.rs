//! Kernel interfaces that nix and libc lack, as thin safe calls, and parsers for /proc.
//!
//! Most of floe's `unsafe` lives here. Nothing in this crate knows what a checkpoint or a sandbox is.

pub mod announce;
mod arch;
pub mod beside;
pub mod bpf_map;
pub mod capability;
pub mod descriptor;
pub mod elf;
pub mod ethtool;
pub mod event;
pub mod exec;
pub mod fanotify;
pub mod fork;
pub mod interrupt;
pub mod kcmp;
pub mod kernel;
pub mod landlock;
pub mod memfd;
pub mod memory;
pub mod message;
pub mod mount;
pub mod mqueue;
pub mod namespace;
pub mod netfilter;
pub mod network;
pub mod packet;
pub mod pagemap;
pub mod pager;
pub mod parallel;
pub mod pid;
pub mod pipe;
pub mod processor;
pub mod procfs;
pub mod ptrace;
pub mod route;
pub mod sched;
pub mod shared;
pub mod socket;
pub mod steering;
pub mod sysv;
pub mod terminal;
pub mod time_namespace;
pub mod timer;
pub mod tun;
pub mod userfault;

pub use pid::Pid;
