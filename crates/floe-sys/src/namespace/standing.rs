//! Processes that enter namespaces: to stand there, so that their files in /proc show what no descriptor does, and to
//! write there what only somebody inside may.

use super::{Kind, maker};
use crate::{beside::beside, capability, elf::waiting_program, fork};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns},
    sys::{
        prctl::{get_dumpable, set_dumpable, set_no_new_privs},
        signal::{Signal, kill},
        stat::Mode,
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, dup2_stdin, dup2_stdout, geteuid, pipe2, read, write},
};
use std::{
    ffi::CString,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// What one executes. Made once, for where a thread has entered another mount namespace it may find no /proc to make it by.
fn program() -> io::Result<&'static OwnedFd> {
    static MADE: OnceLock<OwnedFd> = OnceLock::new();
    match MADE.get() {
        Some(made) => Ok(made),
        None => {
            let made = waiting_program(NAME)?;
            Ok(MADE.get_or_init(|| made))
        }
    }
}

/// What a standing process is called.
const NAME: &str = "floe-standing";

/// A child of the caller that stands in namespaces. It ends when this is dropped, and with its parent.
///
/// Whoever owns a user namespace that it is in may look into it. So it keeps nothing of floe: it executes a program of one
/// page that waits, without descriptors of others, and is shown to nobody until then.
#[derive(Debug)]
pub struct Standing {
    process: Pid,
    /// It lives as long as this end is open.
    _life: OwnedFd,
}

impl Standing {
    /// Makes one that goes there by `enter`, which must take no memory of the heap.
    ///
    /// # Errors
    /// Those of `enter`; EAGAIN, ENOMEM, ENFILE.
    pub fn there(enter: impl FnOnce() -> Result<(), Errno>) -> io::Result<Self> {
        let (end, life) = pipe2(OFlag::O_CLOEXEC)?;
        let (answer, told) = pipe2(OFlag::O_CLOEXEC)?;
        let program = program()?;
        let name = [CString::new(NAME)?];
        let stand = || -> Errno {
            let go = || {
                set_dumpable(false)?;
                enter()?;
                // A change of user may have said otherwise (fs.suid_dumpable).
                set_dumpable(false)?;
                dup2_stdin(&end)?;
                dup2_stdout(&told)?;
                fork::close_all_but(&[0, 1, program.as_raw_fd(), told.as_raw_fd()]);
                set_no_new_privs()
            };
            match go() {
                Ok(()) => fork::execute_descriptor(program.as_raw_fd(), &name, &[]),
                Err(error) => error,
            }
        };
        let process = fork::child(|| {
            let code = stand() as i32;
            // Where it can't be told either, the end of the pipe tells.
            let _ = write(&told, &code.to_ne_bytes());
            1
        })?;
        let standing = Self { process, _life: life };
        drop((told, end));
        let mut code = Vec::new();
        File::from(answer).read_to_end(&mut code)?;
        match code.try_into() {
            Ok(code) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(code))),
            // Its end closed by the program; or by its end before that, which shows where somebody looks at it.
            Err(_) => Ok(standing),
        }
    }

    /// Its id.
    #[must_use]
    pub fn task(&self) -> crate::Pid {
        crate::Pid::new(self.process.as_raw())
    }

    /// Its directory in /proc.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        format!("/proc/{}", self.process).into()
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
        let _ = kill(self.process, Signal::SIGKILL);
        while let Err(Errno::EINTR) = waitpid(self.process, None) {}
    }
}

/// Takes the calling process, and it alone, into a user namespace, as the user that owns it. That one may look into whoever is
/// in there, and do as what is looked into may: so it is nobody more than that user, who but for that would get at root's
/// files. A process that [`fork::child`](crate::fork::child) made may do it, for it takes no memory of the heap.
///
/// # Errors
/// Those of setns(2); EPERM, EINVAL where root can't become that user, of the group of the same number.
pub fn enter_user(user: BorrowedFd<'_>) -> Result<(), Errno> {
    set_dumpable(false)?;
    let (own, owner) = (geteuid(), maker(user)?);
    if owner != own.as_raw() {
        // Of which group the owner is the kernel tells nobody.
        match capability::become_powerful(owner, owner) {
            // Where an ordinary user gets in, the namespaces on the way there are its own.
            Err(Errno::EPERM) if !own.is_root() => {}
            done => done?,
        }
        // A change of user may have said otherwise (fs.suid_dumpable).
        set_dumpable(false)?;
    }
    setns(user, CloneFlags::CLONE_NEWUSER)?;
    set_dumpable(false)
}

/// Runs `act` in a process of its own that shares the caller's memory and is in a user namespace; in the caller's where there is
/// none. Whose that is must not look into that memory, whatever fs.suid_dumpable says.
///
/// # Errors
/// Those of [`enter_user`] and of `act`; EAGAIN, ENOMEM; ECANCELED where `act` panicked.
pub fn beside_in_user<T>(user: Option<BorrowedFd<'_>>, act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let before = get_dumpable()?;
    set_dumpable(false)?;
    let done = beside(|| {
        user.map_or(Ok(()), enter_user)?;
        act()
    });
    set_dumpable(before)?;
    done.and_then(|done| done)
}

/// Reads files of less than 64 bytes as the root of a user namespace, for some tell of whose namespace their reader is in; none of what
/// is not there.
///
/// # Errors
/// Those of setns(2) and read(2); EAGAIN, ENOMEM.
pub fn read_inside(user: BorrowedFd<'_>, paths: &[CString]) -> io::Result<Vec<Option<String>>> {
    let (from, to) = pipe2(OFlag::O_CLOEXEC)?;
    let act = || -> Result<(), Errno> {
        // As above.
        set_dumpable(false)?;
        setns(user, CloneFlags::CLONE_NEWUSER)?;
        set_dumpable(false)?;
        for path in paths {
            let mut text = [0; 64];
            let count = match open(path.as_c_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
                Ok(file) => read(&file, &mut text[1..])?,
                Err(Errno::ENOENT) => 0,
                Err(error) => return Err(error),
            };
            text[0] = count as u8;
            write(&to, &text[..=count])?;
        }
        Ok(())
    };
    let child = fork::child(|| act().err().map_or(0, |error| error as i32))?;
    drop(to);
    let mut told = Vec::new();
    let gathered = File::from(from).read_to_end(&mut told);
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => {}
        WaitStatus::Exited(_, number) => return Err(io::Error::from_raw_os_error(number)),
        other => return Err(io::Error::other(format!("who reads it ended otherwise: {other:?}"))),
    }
    gathered?;
    let mut rest = told.as_slice();
    let mut next = || {
        let (count, behind) = rest.split_first()?;
        let (text, behind) = behind.split_at_checked(usize::from(*count))?;
        rest = behind;
        (*count > 0).then(|| String::from_utf8_lossy(text).into_owned())
    };
    Ok(paths.iter().map(|_| next()).collect())
}

/// Writes a file as the root of a user namespace, for some files ask whose namespace their opener is in; in the caller's
/// own where there is none.
///
/// # Errors
/// Those of setns(2), open(2) and write(2); EAGAIN, ENOMEM.
pub fn write_inside(user: Option<BorrowedFd<'_>>, path: &Path, text: &str) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let act = || -> Result<(), Errno> {
        // Whose the user namespace is must not look into this copy of floe. It stays who it is, for a process that has become
        // another user may not open every file of /proc; and executes nothing, which would let it be looked into.
        set_dumpable(false)?;
        if let Some(user) = user {
            setns(user, CloneFlags::CLONE_NEWUSER)?;
            set_dumpable(false)?;
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
    use super::{Standing, enter_user, write_inside};
    use crate::{
        capability,
        namespace::{Kind, ended_pids, kind, maker, owner},
        time_namespace::{self, Clocks},
    };
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
    fn who_stands_in_a_user_namespace_is_its_owner() {
        let make = || {
            capability::become_powerful(1000, 1000)?;
            unshare(CloneFlags::CLONE_NEWUSER)
        };
        let made = Standing::there(make).expect("a user namespace");
        let user = made.namespace(Kind::User).expect("a namespace");
        assert_eq!(maker(user.as_fd()), Ok(1000));
        for map in ["uid_map", "gid_map"] {
            write_inside(None, &made.directory().join(map), "0 1000 1\n").expect("a map");
        }
        let standing = Standing::there(|| enter_user(user.as_fd())).expect("it enters");
        let inode = |file: &dyn AsFd| fstat(file.as_fd()).expect("a file").st_ino;
        let entered = standing.namespace(Kind::User).expect("a namespace");
        assert_eq!(inode(&entered), inode(&user));
        // Who owns the namespace may look into it, and is to find nothing of root's.
        let status = std::fs::read_to_string(standing.directory().join("status")).expect("its status");
        let ids = |name: &str| -> Vec<&str> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.expect("such a line").split_ascii_whitespace().collect()
        };
        assert_eq!(ids("Uid:"), ["1000"; 4]);
        assert_eq!(ids("Gid:"), ["1000"; 4]);
        assert!(ids("Groups:").is_empty());
        // What is made in there is still the namespace's.
        let time = time_namespace::make(Clocks::default(), Some(user.as_fd())).expect("clocks");
        let pids = std::fs::File::open("/proc/self/ns/pid").expect("one's own");
        let pids = ended_pids(pids.as_fd(), Some(user.as_fd())).expect("PIDs");
        for made in [time, pids] {
            assert_eq!(inode(&owner(made.as_fd()).expect("an owner")), inode(&user));
        }
    }

    #[test]
    fn why_nobody_stands_there_is_told() {
        let failed = Standing::there(|| Err(Errno::ENOSPC)).expect_err("it fails");
        assert_eq!(failed.raw_os_error(), Some(Errno::ENOSPC as i32));
    }
}
