//! `--tty`, which checkpoint and restore have.

use clap::ValueEnum;

/// Which terminal a tree has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tty {
    /// The one that it, or floe, was started on.
    Current,
}
