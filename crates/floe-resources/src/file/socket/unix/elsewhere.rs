//! Names whose paths lead to nothing any more, or to something else. They are given in a file system of their own, which is
//! mounted nowhere, so that what is at the path now is not touched, nor is anything left there.

use super::name::{address, split};
use floe_sys::{message::bind as bind_to, mount::file_system};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, mkdirat},
    unistd::{chroot, fchdir},
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

/// Where a socket has its file.
#[derive(Debug)]
pub(super) struct Place {
    /// Its directory, O_PATH.
    pub folder: OwnedFd,
    /// Its name there.
    pub name: OsString,
    socket: OwnedFd,
}

impl Place {
    /// That of a socket's file that is open (O_PATH), in a directory.
    pub(super) fn new(folder: OwnedFd, name: &OsStr, socket: OwnedFd) -> Self {
        let name = name.to_owned();
        Self { folder, name, socket }
    }

    /// A path by which floe itself reaches it.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.socket.as_raw_fd()))
    }
}

/// Binds a socket to a path that stands for nothing.
pub(super) fn bind(socket: BorrowedFd<'_>, path: &[u8]) -> Result<Place, Errno> {
    // On a thread of its own, which has another root directory then.
    let own = || -> Result<Place, Errno> {
        unshare(CloneFlags::CLONE_FS)?;
        fchdir(file_system(c"tmpfs")?)?;
        chroot(".")?;
        let here = File::open(".").map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        for (end, _) in path.iter().enumerate().filter(|(at, byte)| **byte == b'/' && *at > 0) {
            match mkdirat(&here, Path::new(OsStr::from_bytes(&path[..end])), Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error),
            }
        }
        bind_to(socket, &address(path))?;
        let (folder, name) = split(path);
        let open = |path: &[u8]| open(OsStr::from_bytes(path), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        Ok(Place::new(open(folder)?, name, open(path)?))
    };
    let result = std::thread::scope(|scope| scope.spawn(own).join());
    result.unwrap_or(Err(Errno::EIO))
}

#[cfg(test)]
mod tests {
    use super::bind;
    use std::os::{
        fd::AsFd,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    };

    #[test]
    fn a_path_is_bound_that_is_nothing_to_others() {
        for path in ["/run/nowhere/of/floe", "relative", "../up/./there"] {
            let socket = floe_sys::socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).expect("a socket");
            let place = bind(socket.as_fd(), path.as_bytes()).expect("bind");
            let listener = UnixListener::from(socket);
            let own = listener.local_addr().expect("getsockname");
            assert_eq!(own.as_pathname(), Some(path.as_ref()));
            assert!(!std::fs::exists(path).expect("look"));
            floe_sys::socket::listen(listener.as_fd(), 5).expect("listen");
            UnixStream::connect(place.path()).expect("connect by the place");
            assert!(UnixDatagram::unbound().expect("a socket").connect(path).is_err());
        }
    }
}
