//! What a file must be to stand for another one.

use crate::file::FoundFile;
use floe_sys::socket::option;
use nix::{
    errno::Errno,
    sys::{stat::fstat, termios::tcgetattr},
};
use serde::{Deserialize, Serialize};
use std::{fmt, os::fd::BorrowedFd};

/// The same of both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    /// S_IFMT bits.
    file_type: u32,
    /// AF_*, SOCK_* and IPPROTO_*, of a socket.
    socket: Option<(i32, i32, i32)>,
    /// Whether it is a terminal.
    terminal: bool,
    /// Number of a device that is no terminal, or 0.
    device: u64,
}

impl Shape {
    /// Whether a file may be left to the user: what others than floe can make.
    pub(super) fn can_be(file: &FoundFile) -> bool {
        let types = [
            libc::S_IFIFO,
            libc::S_IFSOCK,
            libc::S_IFCHR,
            libc::S_IFBLK,
            libc::S_IFREG,
        ];
        types.contains(&file.file_type()) && !file.is_path_only() && !file.link.starts_with(b"anon_inode:")
    }

    pub(super) fn of(file: BorrowedFd<'_>) -> Result<Self, Errno> {
        let found = fstat(file)?;
        let file_type = found.st_mode & libc::S_IFMT;
        let number = |name| -> Result<i32, Errno> {
            let bytes = option(file, libc::SOL_SOCKET, name)?;
            Ok(i32::from_ne_bytes(bytes.try_into().map_err(|_| Errno::EPROTO)?))
        };
        let socket = match file_type {
            libc::S_IFSOCK => Some((
                number(libc::SO_DOMAIN)?,
                number(libc::SO_TYPE)?,
                number(libc::SO_PROTOCOL)?,
            )),
            _ => None,
        };
        let terminal = file_type == libc::S_IFCHR && tcgetattr(file).is_ok();
        let is_device = [libc::S_IFCHR, libc::S_IFBLK].contains(&file_type) && !terminal;
        Ok(Self {
            file_type,
            socket,
            terminal,
            device: if is_device { found.st_rdev } else { 0 },
        })
    }

    /// Whether what can be read from it is gone for others then.
    pub(super) fn holds_input(&self) -> bool {
        self.terminal || [libc::S_IFIFO, libc::S_IFSOCK].contains(&self.file_type)
    }

    /// Whether it can't be opened once more.
    pub(super) fn is_socket(&self) -> bool {
        self.socket.is_some()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.file_type, self.socket) {
            (_, Some((family, kind, _))) => {
                let kind = match kind {
                    libc::SOCK_STREAM => "stream",
                    libc::SOCK_DGRAM => "datagram",
                    libc::SOCK_SEQPACKET => "packet",
                    _ => "raw",
                };
                match family {
                    libc::AF_UNIX => write!(f, "a unix {kind} socket"),
                    libc::AF_INET => write!(f, "an IPv4 {kind} socket"),
                    libc::AF_INET6 => write!(f, "an IPv6 {kind} socket"),
                    other => write!(f, "a {kind} socket of family {other}"),
                }
            }
            _ if self.terminal => f.write_str("a terminal"),
            (libc::S_IFIFO, _) => f.write_str("a pipe"),
            (libc::S_IFREG, _) => f.write_str("a file"),
            (libc::S_IFBLK, _) => write!(f, "the block device {}", Numbers(self.device)),
            (libc::S_IFCHR, _) => write!(f, "the character device {}", Numbers(self.device)),
            (other, _) => write!(f, "a file of type {other:o}"),
        }
    }
}

struct Numbers(u64);

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use nix::sys::stat::{major, minor};
        write!(f, "{}:{}", major(self.0), minor(self.0))
    }
}
