//! PID namespaces whose PID 1 has ended: nobody is born into one any more, but descriptors and mounts can keep it.

use super::{Kind, enter_user};
use crate::{descriptor::adopt, fork};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns, unshare},
    sys::{stat::Mode, wait::waitpid},
    unistd::{Pid, pipe2, write},
};
use std::{
    fs::File,
    io::{self, Read},
    os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd},
};

/// Makes one below another one, in which processes can be born, and which is `user`'s where there is such a user namespace.
///
/// # Errors
/// Those of setns(2), unshare(2), fork(2); ENOMEM where PID 1 of the one above has ended.
pub fn ended_pids(above: BorrowedFd<'_>, user: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    // What a thread's children are born into is that thread's own affair.
    let made = std::thread::scope(|scope| scope.spawn(|| made_by_child(above, user)).join());
    made.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

fn made_by_child(above: BorrowedFd<'_>, user: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    setns(above, CloneFlags::from_bits_retain(Kind::Pid.flag()))?;
    let (answer, told) = pipe2(OFlag::O_CLOEXEC)?;
    // It opens what stays open here.
    let child = fork::child_with_files(|| {
        let (failed, number) = match make(user) {
            Ok(number) => (0, number),
            Err(error) => (1, error as i32),
        };
        // Where it can't be told, the end of the pipe tells.
        let _ = write(&told, &[[failed, 0, 0, 0], number.to_ne_bytes()].concat());
        0
    })?;
    reap(child)?;
    drop(told);
    let mut text = Vec::new();
    File::from(answer).read_to_end(&mut text)?;
    let word = |at: usize| {
        text.get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map(i32::from_ne_bytes)
    };
    match (word(0), word(4)) {
        (Some(0), Some(number)) => Ok(adopt(number)),
        (Some(_), Some(code)) => Err(io::Error::from_raw_os_error(code)),
        _ => Err(io::Error::other("who was to make it was killed")),
    }
}

/// By a process of the one above, a copy of floe; its number in the table of descriptors.
fn make(user: Option<BorrowedFd<'_>>) -> Result<RawFd, Errno> {
    if let Some(user) = user {
        enter_user(user)?;
    }
    unshare(CloneFlags::CLONE_NEWPID)?;
    reap(fork::child(|| 0)?)?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let made = open(c"/proc/self/ns/pid_for_children", flags, Mode::empty())?;
    Ok(made.into_raw_fd())
}

fn reap(child: Pid) -> Result<(), Errno> {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            ended => return ended.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ended_pids;
    use crate::namespace::{kind, parent};
    use nix::sys::stat::fstat;
    use std::{fs::File, os::fd::AsFd};

    #[test]
    fn it_is_below_the_one_that_it_was_made_in() {
        let own = File::open("/proc/self/ns/pid").expect("one's own");
        let made = ended_pids(own.as_fd(), None).expect("a namespace");
        assert_eq!(kind(made.as_fd()), Ok(libc::CLONE_NEWPID));
        let above = parent(made.as_fd()).expect("one above");
        let inode = |file: &dyn AsFd| fstat(file.as_fd()).expect("a file").st_ino;
        assert_eq!(inode(&above), inode(&own));
        // Nobody can be born there.
        let below = ended_pids(made.as_fd(), None).expect_err("its PID 1 has ended");
        assert_eq!(below.raw_os_error(), Some(libc::ENOMEM));
    }
}
