//! Processes that enter namespaces: to stand there, so that their files in /proc show what no descriptor does, and to
//! write there what only somebody inside may.

use super::Kind;
use crate::fork;
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns},
    sys::{
        prctl::set_dumpable,
        signal::{Signal, kill},
        stat::Mode,
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, getpid, pause, write},
};
use std::{
    ffi::CString,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::{Path, PathBuf},
};

/// A child of the caller that stands in namespaces. It ends when this is dropped, or its parent ends.
#[derive(Debug)]
pub struct Standing(Pid);

impl Standing {
    /// Makes one that goes there by `enter`.
    ///
    /// # Errors
    /// Those of `enter`; EAGAIN, ENOMEM, ENFILE.
    pub fn there(enter: impl FnOnce() -> Result<(), Errno>) -> io::Result<Self> {
        let (mut near, far) = UnixStream::pair()?;
        let parent = getpid();
        let guard = || fork::signal_at_parents_end(Signal::SIGKILL, parent);
        let life = || {
            // Who has changed its user is shown to nobody by itself, and the signal is gone then, too.
            let result = guard()
                .and_then(|()| enter())
                .and_then(|()| set_dumpable(true))
                .and_then(|()| guard());
            let code = result.err().map_or(0, |error| error as i32);
            if (&far).write_all(&code.to_ne_bytes()).is_err() || code != 0 {
                return 1;
            }
            loop {
                pause();
            }
        };
        let standing = Self(fork::child(life)?);
        let mut code = [0; 4];
        near.read_exact(&mut code)?;
        match i32::from_ne_bytes(code) {
            0 => Ok(standing),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// Its id.
    #[must_use]
    pub fn task(&self) -> crate::Pid {
        crate::Pid::new(self.0.as_raw())
    }

    /// Its directory in /proc.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        format!("/proc/{}", self.0).into()
    }

    /// A namespace that it is in.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn namespace(&self, kind: Kind) -> io::Result<OwnedFd> {
        Ok(File::open(self.directory().join("ns").join(kind.name()))?.into())
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        // It was not waited for, so the id is its own.
        let _ = kill(self.0, Signal::SIGKILL);
        while let Err(Errno::EINTR) = waitpid(self.0, None) {}
    }
}

/// Writes a file as the root of a user namespace, for some files ask whose namespace their opener is in; in the caller's
/// own where there is none.
///
/// # Errors
/// Those of setns(2), open(2) and write(2); EAGAIN, ENOMEM.
pub fn write_inside(user: Option<BorrowedFd<'_>>, path: &Path, text: &str) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let act = || -> Result<(), Errno> {
        if let Some(user) = user {
            setns(user, CloneFlags::CLONE_NEWUSER)?;
        }
        let file = open(path.as_c_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        write(file.as_fd(), text.as_bytes()).map(drop)
    };
    let child = fork::child(|| act().err().map_or(0, |error| error as i32))?;
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, code) => Err(io::Error::from_raw_os_error(code)),
        _ => Err(io::Error::other("who was to write it was killed")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Standing, write_inside};
    use crate::namespace::{Kind, kind, owner};
    use nix::{
        errno::Errno,
        sched::{CloneFlags, setns, unshare},
        sys::stat::fstat,
    };
    use std::os::fd::AsFd;

    #[test]
    fn what_is_below_a_namespace_is_written_from_inside() {
        let above = Standing::there(|| unshare(CloneFlags::CLONE_NEWUSER)).expect("a user namespace");
        let path = above.directory().join("uid_map");
        write_inside(None, &path, "0 0 10\n").expect("a map");
        write_inside(None, &above.directory().join("gid_map"), "0 0 10\n").expect("a map");
        let above = above.namespace(Kind::User).expect("a namespace");
        let enter = || {
            setns(above.as_fd(), CloneFlags::CLONE_NEWUSER)?;
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWUTS)
        };
        let below = Standing::there(enter).expect("one below");
        let path = below.directory().join("uid_map");
        let from_here = write_inside(None, &path, "0 0 1\n").expect_err("neither inside nor above");
        assert_eq!(from_here.raw_os_error(), Some(Errno::EPERM as i32));
        write_inside(Some(above.as_fd()), &path, "0 5 2\n").expect("from above");
        let text = std::fs::read_to_string(path).expect("the map");
        assert_eq!(text.split_ascii_whitespace().collect::<Vec<_>>(), ["0", "5", "2"]);
        let uts = below.namespace(Kind::Uts).expect("a namespace");
        assert_eq!(kind(uts.as_fd()), Ok(libc::CLONE_NEWUTS));
        let inode = |file: &dyn AsFd| fstat(file.as_fd()).expect("a file").st_ino;
        let user = below.namespace(Kind::User).expect("a namespace");
        assert_eq!(inode(&owner(uts.as_fd()).expect("an owner")), inode(&user));
        assert_eq!(inode(&owner(user.as_fd()).expect("a parent")), inode(&above));
    }

    #[test]
    fn why_nobody_stands_there_is_told() {
        let failed = Standing::there(|| Err(Errno::ENOSPC)).expect_err("it fails");
        assert_eq!(failed.raw_os_error(), Some(Errno::ENOSPC as i32));
    }
}
