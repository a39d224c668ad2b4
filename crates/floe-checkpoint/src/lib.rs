//! The two acts, each a list of stages that reads on one page: [`checkpoint`](checkpoint::checkpoint) and
//! [`restore`](restore::restore).

pub mod checkpoint;
pub mod restore;
pub mod stage;
