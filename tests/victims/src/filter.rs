//! Classic socket filters, Documentation/networking/filter.rst.

use crate::socket;
use std::{io, os::fd::AsRawFd};

/// struct sock_filter.
pub type Instruction = [u8; 8];

/// SO_LOCK_FILTER, asm-generic/socket.h.
pub const LOCK: i32 = 44;

/// One.
#[must_use]
pub fn instruction(code: u16, yes: u8, no: u8, value: u32) -> Instruction {
    let (code, value) = (code.to_ne_bytes(), value.to_ne_bytes());
    [code[0], code[1], yes, no, value[0], value[1], value[2], value[3]]
}

/// Lets nothing pass of which the byte at a place is this.
#[must_use]
pub fn without(place: u32, byte: u8) -> [Instruction; 4] {
    [
        // That byte; if it is the one, go on one further.
        instruction(0x30, 0, 0, place),
        instruction(0x15, 1, 0, byte.into()),
        instruction(6, 0, 0, u32::MAX),
        instruction(6, 0, 0, 0),
    ]
}

/// Lets no segment of TCP pass that carries bytes.
#[must_use]
pub fn without_bytes() -> [Instruction; 8] {
    [
        // Its header, in words of four bytes, stands in its byte 12.
        instruction(0x30, 0, 0, 12),
        instruction(0x54, 0, 0, 0xf0),
        instruction(0x74, 0, 0, 2),
        // As much as there is: all.
        instruction(0x07, 0, 0, 0),
        instruction(0x80, 0, 0, 0),
        instruction(0x1d, 0, 1, 0),
        instruction(6, 0, 0, u32::MAX),
        instruction(6, 0, 0, 0),
    ]
}

/// Lets nothing pass.
pub const NOTHING: [Instruction; 1] = [[6, 0, 0, 0, 0, 0, 0, 0]];

/// Gives a socket such a program, by an option of this name.
///
/// # Errors
/// errno.
pub fn try_set(socket: &impl AsRawFd, name: i32, program: &[Instruction]) -> io::Result<()> {
    let mut whole = (program.len() as u64).to_ne_bytes().to_vec();
    whole.extend((program.as_ptr() as u64).to_ne_bytes());
    socket::try_set(socket.as_raw_fd(), libc::SOL_SOCKET, name, &whole)
}

/// Gives a socket a filter.
///
/// # Panics
/// Where that fails.
pub fn attach(socket: &impl AsRawFd, program: &[Instruction]) {
    try_set(socket, libc::SO_ATTACH_FILTER, program).expect("SO_ATTACH_FILTER");
}

/// Takes it away.
///
/// # Errors
/// errno.
pub fn detach(socket: &impl AsRawFd) -> io::Result<()> {
    socket::try_set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &[0; 4])
}

/// That of a socket, none where it has none.
///
/// # Panics
/// Where it can't be asked for.
#[must_use]
pub fn attached(socket: &impl AsRawFd) -> Vec<Instruction> {
    let mut program = vec![[0_u8; 8]; 100];
    // Counted in instructions.
    let mut length = program.len() as libc::socklen_t;
    // SAFETY: room for as many.
    let result = unsafe {
        let place = program.as_mut_ptr().cast();
        let name = libc::SO_GET_FILTER;
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, place, &raw mut length)
    };
    assert_eq!(result, 0, "SO_GET_FILTER: {}", io::Error::last_os_error());
    program.truncate(length as usize);
    program
}
