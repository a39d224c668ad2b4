//! Who brings pages of memory to a sandbox that runs already, and who looks after that.
//!
//! ```text
//! launcher ─┬─ guard ─── server        the two have one table of descriptors
//!           └─ monitor                 has those of the processes that were there from the beginning, too
//! ```
//! Where the last descriptor of a userfaultfd is closed, whatever has not come yet is zeros for the workload. So three
//! processes have them, and each sees the ends of others: the guard that of the server (whose parent it is), the server those of
//! the guard and the monitor, the monitor that of both (a socket's). The sandbox is ended, with a word in its log, when the
//! server ends before it is done; when the server is the last of the three; when guard and server are gone. Who ends it holds
//! the descriptors until nobody is left in it. A monitor that ends alone changes nothing of this: its sandbox goes on.

use crate::{
    launch::{Launch, LaunchError, system},
    message::{self, kind},
};
use floe_sys::{Pid, descriptor, fork, pipe};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{WaitStatus, waitpid},
    unistd::{read, write},
};
use std::{
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

/// What the server knows of its surroundings.
#[derive(Debug)]
pub struct PageKeeper {
    /// The way to the monitor.
    monitor: OwnedFd,
    has_monitor: bool,
    guard: OwnedFd,
    has_guard: bool,
    pid1: OwnedFd,
}

impl Launch {
    /// Starts a process that brings pages of memory, `life`: until all are there (`true`), or nobody is left to bring them to.
    /// `held` are copies of descriptors of which none may be closed before, for the monitor; `keep` are what it needs, among them
    /// those. The caller must have one thread.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn bring_pages(
        &self,
        held: &[BorrowedFd<'_>],
        keep: &[RawFd],
        life: impl FnOnce(&mut PageKeeper) -> bool,
    ) -> Result<(), LaunchError> {
        let (near, far) = message::pair().map_err(system("make a socket for the page server"))?;
        let (ready, tells) = pipe::close_on_exec().map_err(system("make a pipe for the page server"))?;
        let pid1 = descriptor::pidfd_open(self.pid1()).map_err(system("open a pidfd of PID 1"))?;
        self.hand_over(&far, held)?;
        drop(far);
        let between = fork::child(|| {
            // So that it is nobody's who would have to reap it.
            let guard = fork::child(|| guard((near, pid1, tells), keep, life));
            i32::from(guard.is_err())
        });
        let between = between.map_err(system("fork the page server"))?;
        let forked = loop {
            match waitpid(between, None) {
                Err(Errno::EINTR) => {}
                result => break result,
            }
        };
        if !matches!(forked, Ok(WaitStatus::Exited(_, 0))) {
            return Err(system("fork the page server")(Errno::EAGAIN));
        }
        let mut byte = [0];
        loop {
            match read(&ready, &mut byte) {
                Ok(1) => return Ok(()),
                Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => return Err(system("start the page server")(Errno::ECHILD)),
            }
        }
    }
}

/// The guard's life, in whose child the server lives.
fn guard(
    (monitor, pid1, tells): (OwnedFd, OwnedFd, OwnedFd),
    keep: &[RawFd],
    life: impl FnOnce(&mut PageKeeper) -> bool,
) -> i32 {
    let mut all: Vec<RawFd> = keep.to_vec();
    all.extend([&monitor, &pid1, &tells].map(AsRawFd::as_raw_fd));
    fork::close_all_but(&all);
    descriptor::null_streams();
    fork::leave_session("floe-pages");
    if let Err(error) = std::env::set_current_dir("/") {
        tracing::debug!(%error, "the page server stays in its directory");
    }
    let Ok(own) = descriptor::pidfd_open(Pid::new(std::process::id() as i32)) else {
        return 1;
    };
    let mut keeper = PageKeeper {
        monitor,
        has_monitor: true,
        guard: own,
        has_guard: true,
        pid1,
    };
    // What the server owns it alone may close, in the one table that there is.
    let life = ManuallyDrop::new(life);
    let server = match fork::child_with_files(|| {
        abort_on_panic();
        i32::from(!ManuallyDrop::into_inner(life)(&mut keeper))
    }) {
        Ok(server) => server,
        Err(error) => {
            tracing::error!(%error, "fork the page server");
            return 1;
        }
    };
    // From now on the launcher may let the sandbox run. If it is gone, nobody is left to be told.
    let _ = write(&tells, b"r");
    drop(tells);
    let end = loop {
        match waitpid(server, None) {
            Ok(WaitStatus::Exited(_, 0)) => return 0,
            Ok(WaitStatus::Exited(_, status)) => break format!("ended with status {status}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => break format!("was ended by {signal}"),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => break format!("is lost: {error}"),
        }
    };
    keeper.end_sandbox(&format!("the process that brought its memory {end}"));
    1
}

/// Has a panic end this process before it unwinds: that would close, in the table that the guard has too, what must not be
/// closed while the sandbox lives, or leave it waiting for a thread that is gone.
fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "the page server");
        std::process::abort();
    }));
}

impl PageKeeper {
    /// What to wait for besides.
    pub fn surroundings(&self) -> Vec<BorrowedFd<'_>> {
        let others = [(&self.monitor, self.has_monitor), (&self.guard, self.has_guard)];
        let others = others
            .into_iter()
            .filter_map(|(file, is_there)| is_there.then_some(file));
        others.chain([&self.pid1]).map(AsFd::as_fd).collect()
    }

    /// Whether nobody is left in the sandbox. Ends it where this process is the last to hold what must not be closed.
    pub fn is_over(&mut self) -> bool {
        // Neither is closed: the two have one table.
        self.has_monitor &= !is_ready(&self.monitor);
        self.has_guard &= !is_ready(&self.guard);
        if !self.has_monitor && !self.has_guard {
            self.end_sandbox("only one process is left that brings its memory");
        }
        is_ready(&self.pid1)
    }

    /// Ends the sandbox, and comes back when nobody is left in it.
    pub fn end_sandbox(&self, why: &str) {
        if is_ready(&self.pid1) {
            return;
        }
        if let Err(error) = message::put(&self.monitor, kind::FAILED, &message::failure(Errno::EIO, why)) {
            tracing::debug!(%error, "the monitor is gone");
        }
        // The monitor lets a frozen one die.
        if let Err(error) = descriptor::pidfd_kill(self.pid1.as_fd()) {
            tracing::debug!(%error, "PID 1 is gone already");
        }
        let mut end = [PollFd::new(self.pid1.as_fd(), PollFlags::POLLIN)];
        while let Err(Errno::EINTR) | Ok(0) = poll(&mut end, PollTimeout::NONE) {}
    }

    /// Says that all pages are there. All descriptors that must not be closed before are closed by now, but for the monitor's.
    pub fn complete(&self) {
        if let Err(error) = message::put(&self.monitor, kind::LOADED, &[]) {
            tracing::debug!(%error, "the monitor is gone");
        }
    }
}

fn is_ready(fd: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut asked, PollTimeout::ZERO);
    ready.is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::abort_on_panic;
    use floe_sys::{fork, pipe};
    use nix::{
        sys::{
            signal::Signal,
            wait::{WaitStatus, waitpid},
        },
        unistd::read,
    };

    /// A word that says that it is dropped.
    struct Held<'a>(&'a std::os::fd::OwnedFd);

    impl Drop for Held<'_> {
        fn drop(&mut self) {
            nix::unistd::write(self.0, b"d").expect("write to a pipe");
        }
    }

    #[test]
    fn a_panic_of_any_thread_ends_the_server_and_closes_nothing_before() {
        for in_thread in [false, true] {
            let (ready, tells) = pipe::close_on_exec().expect("a pipe");
            let child = fork::child(|| {
                abort_on_panic();
                let _held = Held(&tells);
                std::thread::scope(|scope| {
                    if in_thread {
                        scope.spawn(|| panic!("in a thread"));
                        loop {
                            std::thread::park();
                        }
                    }
                    panic!("in the first thread")
                })
            });
            drop(tells);
            let end = waitpid(child.expect("fork"), None).expect("wait");
            assert!(matches!(end, WaitStatus::Signaled(_, Signal::SIGABRT, _)), "{end:?}");
            assert_eq!(read(&ready, &mut [0]), Ok(0), "something was dropped");
        }
    }
}
