//! Files of sockets that nobody has any more: what is left at a path is in the way of who binds there again.

use super::name::{AT_FDCWD, address};
use crate::file::{FileError, socket::system};
use floe_tracee::Puppet;
use std::io;

/// Whether there is a socket at a path; an error where there is anything else.
pub(super) fn is_there(id: u32, puppet: &Puppet, path: &[u8]) -> Result<bool, FileError> {
    /// struct statx and its `stx_mode`.
    const BYTES: usize = 256;
    const MODE: usize = 28;
    let mut batch = puppet.batch();
    let (place, room) = (batch.data(path), batch.room(BYTES));
    let flags = libc::AT_SYMLINK_NOFOLLOW as u64;
    let arguments = [AT_FDCWD, place, flags, u64::from(libc::STATX_TYPE), room];
    let looked = batch.attempt("look for an old socket", libc::SYS_statx, &arguments);
    puppet.run(&mut batch)?;
    match batch.result(looked) {
        0 => {}
        error if error == -i64::from(libc::ENOENT) => return Ok(false),
        error => {
            return Err(system(
                "look for an old socket like",
                id,
                io::Error::from_raw_os_error(-error as i32),
            ));
        }
    }
    let bytes = batch.bytes(room, BYTES);
    let mode = u32::from(u16::from_ne_bytes([bytes[MODE], bytes[MODE + 1]]));
    if mode & libc::S_IFMT == libc::S_IFSOCK && !is_alive(puppet, path)? {
        Ok(true)
    } else {
        Err(system("bind", id, io::ErrorKind::AlreadyExists.into()))
    }
}

/// Whether somebody has the socket at a path, in whatever network namespace. A datagram socket that tries to connect with
/// it is told so, and nobody else is.
fn is_alive(puppet: &Puppet, path: &[u8]) -> Result<bool, FileError> {
    let mut batch = puppet.batch();
    let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
    let made = batch.call("make a socket", libc::SYS_socket, &[libc::AF_UNIX as u64, kind, 0]);
    puppet.run(&mut batch)?;
    let number = batch.result(made) as u64;
    let mut batch = puppet.batch();
    let bytes = address(&path[..path.len() - 1]);
    let place = batch.data(&bytes);
    let arguments = [number, place, bytes.len() as u64];
    let answer = batch.attempt("try an old socket", libc::SYS_connect, &arguments);
    batch.call("close a socket", libc::SYS_close, &[number]);
    puppet.run(&mut batch)?;
    Ok(batch.result(answer) != -i64::from(libc::ECONNREFUSED))
}
