//! What all victims share: the protocol with the harness, threads and children that check themselves, patterns.
//!
//! A victim is `NAME [--sabotage] DIR [ARG…]`. It makes its state, creates `DIR/ready`, and for each `DIR/check.N`
//! (N = 1, 2, …) that appears it checks itself and creates `DIR/result.N` with `ok` or `FAIL: ` and what differs.
//! Files appear by rename, so that none is seen half written. `DIR/stop` ends it. With `--sabotage` it damages its own
//! state before it checks, as a checkpoint that loses that state would: a victim that still says `ok` is worthless.
//!
//! Must not know: floe, how or whether it is checkpointed.

pub mod arch;
pub mod call;
pub mod cgroup;
pub mod descriptor;
pub mod field;
pub mod filter;
pub mod findings;
pub mod ipc;
pub mod letter;
pub mod memory;
pub mod mounts;
pub mod notice;
pub mod own;
pub mod pattern;
pub mod peer;
pub mod pty;
pub mod seccomp;
pub mod socket;
pub mod stage;
pub mod sysv;
pub mod team;
pub mod timer;
pub mod tun;
pub mod urgent;
pub mod users;
pub mod waiting;

pub use descriptor::Seen;
pub use findings::Findings;
pub use peer::Peer;
pub use stage::{Stage, play, wait_until};
pub use team::Team;
