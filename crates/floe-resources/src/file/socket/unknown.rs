//! Sockets that floe has no kind for.

use super::{ADVICE, family};
use crate::file::FoundFile;

/// A number; why sockets that have it can't be carried; what to do.
type Known = (i32, &'static str, &'static str);

/// linux/socket.h.
const AF_SMC: i32 = 43;

const FAMILIES: &[Known] = &[
    (
        libc::AF_VSOCK,
        "a vsock socket can't be carried: its other end is in another machine",
        "close it, or use TCP",
    ),
    (
        libc::AF_XDP,
        "a socket of AF_XDP can't be carried: it shares memory with a network device",
        "close it, or use a packet socket",
    ),
    (
        libc::AF_ALG,
        "a socket of AF_ALG can't be carried: its key, and how far it has computed, is told nowhere",
        "use a library for cryptography",
    ),
    (
        libc::AF_BLUETOOTH,
        "a bluetooth socket can't be carried: its other end is another machine",
        "have a process outside of the tree do it",
    ),
    (
        libc::AF_CAN,
        "a socket of AF_CAN can't be carried yet",
        "have a process outside of the tree do it",
    ),
    (
        AF_SMC,
        "a socket of SMC can't be carried: memory of its other end is in another machine",
        "use TCP",
    ),
];

/// Protocols of the internet's.
const PROTOCOLS: &[Known] = &[
    (
        libc::IPPROTO_MPTCP,
        "a socket of MPTCP can't be carried: of the connections that one is made of no call tells",
        "use TCP (programs of Go: GODEBUG=multipathtcp=0)",
    ),
    (
        libc::IPPROTO_SCTP,
        "a socket of SCTP can't be carried: the state of an association can't be set",
        "close it, or use TCP",
    ),
];

fn known(all: &[Known], number: i32) -> Option<(String, &'static str)> {
    let found = all.iter().find(|(own, ..)| *own == number);
    found.map(|(_, reason, advice)| ((*reason).to_owned(), *advice))
}

/// Why a socket of a family that floe has no kind for can't be carried, and what to do.
pub(in crate::file) fn of_family(file: &FoundFile) -> (String, &'static str) {
    let family = family(file).unwrap_or(libc::AF_UNSPEC);
    known(FAMILIES, family).unwrap_or_else(|| (format!("a socket of family {family} can't be carried yet"), ADVICE))
}

/// The same of one of the internet's with another protocol than TCP, UDP and UDP-Lite.
pub(super) fn of_protocol(protocol: i32) -> (String, &'static str) {
    known(PROTOCOLS, protocol)
        .unwrap_or_else(|| (format!("a socket of protocol {protocol} can't be carried yet"), ADVICE))
}
