//! What end-to-end tests share: the `floe` command with a time limit and a state directory of its own, and victims.
//!
//! Everything a test starts hangs on a [`Host`]; dropping it ends its sandboxes, also when the test fails.

mod cgroups;
mod command;
mod cpio;
mod elsewhere;
mod machine;
pub mod migration;
mod mounting;
mod mounts;
mod network;
mod portrait;
mod program;
mod rootfs;
mod talk;
pub mod talker;
mod traces;
mod tree;
mod two_networks;
mod victim;

pub use cgroups::{cgroup_file, cgroups_of, host_of_version_1, host_of_version_2, host_without_cgroups};
pub use command::{Host, ORDINARY, Outcome, json, leave, run, signal, spawn, times, until, wait};
pub use elsewhere::Elsewhere;
pub use machine::Machine;
pub use mounting::{Mounting, WAIT};
pub use mounts::enter_own_mounts;
pub use network::{Network, enter_own_network};
pub use portrait::Portrait;
pub use program::{Program, has, source};
pub use rootfs::make_rootfs;
pub use talk::ask;
pub use traces::{Traces, is_followed};
pub use tree::Counting;
pub use two_networks::TwoNetworks;
pub use victim::{Victim, program};

/// How a restore chooses PIDs; every round trip is made with both.
pub const PID_METHODS: [&str; 2] = ["ns-last-pid", "set-tid"];

/// Says that something was not tested here, and why; `tools/test` gathers these lines.
#[expect(clippy::print_stdout, reason = "the line is for whoever reads the tests' output")]
pub fn skip(reason: &str) {
    println!("skip: {reason}");
}
