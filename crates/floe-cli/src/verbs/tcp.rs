//! `--tcp`, which checkpoint and restore have.

use clap::ValueEnum;
use floe_resources::file::TcpMode;

/// What becomes of TCP connections whose other ends are outside of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tcp {
    /// They go on: packets are held back while the tree is away, and the other ends notice nothing but the delay.
    Established,
    /// They are given up: the tree finds them reset.
    Close,
    /// They stand in the way.
    Refuse,
}

impl From<Tcp> for TcpMode {
    fn from(tcp: Tcp) -> Self {
        match tcp {
            Tcp::Established => Self::Established,
            Tcp::Close => Self::Close,
            Tcp::Refuse => Self::Refuse,
        }
    }
}
