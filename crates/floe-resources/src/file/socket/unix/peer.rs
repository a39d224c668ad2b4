//! Ends whose other end is outside of the tree and that connect anew when it is restored: with whoever is at that name then.

use super::{
    Body, State,
    connection::{To, connect_as},
    name, possible, unaccepted,
};
use crate::file::{
    FileError, Holders, own_groups,
    socket::{Maker, system},
};
use floe_image::record::{NsPid, OpenFileRecord};
use floe_sys::{
    descriptor::open_in_root,
    socket::{new, unix_sockets},
};
use nix::{
    errno::Errno,
    sys::socket::{UnixAddr, connect},
};
use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Whom an end connects with that is to connect anew, and what it is (SOCK_*).
pub(in crate::file) fn outside_peer(record: &OpenFileRecord) -> Result<Option<(Vec<u8>, i32)>, FileError> {
    if record.kind != super::NAME {
        return Ok(None);
    }
    let body = possible(record)?;
    Ok(match body.state {
        State::Outside { to } => Some((to, body.kind)),
        _ => None,
    })
}

/// Whether floe can look a name up again: others mean something to one process alone.
pub(super) fn is_lasting(name: &[u8]) -> bool {
    !name::is_path(name) || name.starts_with(b"/")
}

/// Connects it, as the one that owns it.
pub(super) fn connect_anew((id, body): (u32, &Body), to: &[u8], holders: &Holders<'_>) -> Result<(), FileError> {
    let Some((pid, number)) = holders.first(id) else {
        return Ok(());
    };
    let (uid, gid) = body.own.owner();
    let maker = Maker {
        pid: NsPid(pid),
        uid,
        gid,
    };
    let socket = holders.fetch((pid, number))?;
    let failed = |source: Errno| system("prepare", id, source.into());
    let before = unaccepted::without_waiting(socket.as_fd()).map_err(failed)?;
    let own = own_groups()?;
    connect_as(
        (holders.puppet(pid)?, number),
        (maker, &[]),
        To::Name(to),
        (holders.channel, &own),
    )?;
    unaccepted::set_flags(socket.as_fd(), before).map_err(failed)
}

/// What is in the way of that in `root`.
pub(super) fn obstacle(to: &[u8], kind: i32, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
    let shown = name::shown(to);
    let wrap = || FileError::system("look for the socket", shown.clone());
    if !name::is_path(to) {
        let listed = unix_sockets().map_err(wrap())?;
        let is_there = listed
            .values()
            .any(|one| one.name.as_deref() == Some(to) && one.kind == kind && takes_others(one.listens, kind));
        return Ok((!is_there).then(|| format!("there is no socket {shown} to connect with")));
    }
    let path = Path::new(OsStr::from_bytes(to));
    let Ok(file) = open_in_root(root, path, libc::O_PATH | libc::O_CLOEXEC, 0) else {
        return Ok(Some(format!("there is no socket {shown} to connect with")));
    };
    // One that listens is of another type, and is not told of the attempt.
    let probe = new(libc::AF_UNIX, libc::SOCK_DGRAM, 0).map_err(wrap())?;
    let address = UnixAddr::new(&Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())).map_err(wrap())?;
    let answer = connect(probe.as_raw_fd(), &address);
    let wanted = match kind {
        libc::SOCK_DGRAM => Ok(()),
        _ => Err(Errno::EPROTOTYPE),
    };
    Ok((answer != wanted).then(|| match answer {
        Err(Errno::ECONNREFUSED) => format!("nobody has the socket {shown} to connect with"),
        _ => format!("{shown} is another kind of socket here"),
    }))
}

fn takes_others(listens: bool, kind: i32) -> bool {
    listens || kind == libc::SOCK_DGRAM
}
