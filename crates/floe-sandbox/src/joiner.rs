//! Who joins a sandbox to networks outside that is held frozen, when it is let run: until then it must not be seen there,
//! as another one may be that has the same addresses.
//!
//! A process of its own has what that takes, and waits for the monitor's word. Where the monitor goes, or lets the sandbox
//! end, nothing is done.

use crate::{
    launch::{Launch, LaunchError, system},
    message::{self, kind},
};
use floe_sys::{Pid, descriptor, fork};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{WaitStatus, waitpid},
};
use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

/// How long the joining may take: less than a source is patient.
const LIMIT: Duration = Duration::from_secs(5);

impl Launch {
    /// Starts a process that does `act` when the monitor lets the sandbox run, which is held until then. `keep` are the
    /// descriptors that it needs, also to drop what it owns. The caller must have one thread.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn when_let_run(&self, keep: &[RawFd], act: impl FnOnce() -> Result<(), String>) -> Result<(), LaunchError> {
        const ACTION: &str = "start the process that joins the sandbox to networks";
        let (near, far) = message::pair().map_err(system(ACTION))?;
        let between = fork::child(|| {
            // So that it is nobody's who would have to reap it.
            let joiner = fork::child(|| live(&near, keep, act));
            i32::from(joiner.is_err())
        });
        let between = between.map_err(system(ACTION))?;
        let forked = loop {
            match waitpid(between, None) {
                Err(Errno::EINTR) => {}
                result => break result,
            }
        };
        if !matches!(forked, Ok(WaitStatus::Exited(_, 0))) {
            return Err(system(ACTION)(Errno::EAGAIN));
        }
        self.hand_joiner(&far)
    }
}

fn live(monitor: &OwnedFd, keep: &[RawFd], act: impl FnOnce() -> Result<(), String>) -> i32 {
    let mut all = keep.to_vec();
    all.push(monitor.as_raw_fd());
    fork::close_all_but(&all);
    descriptor::null_streams();
    fork::leave_session("floe-join");
    // One that is not moved in is not here any more.
    if let Err(error) = std::env::set_current_dir("/") {
        tracing::debug!(%error, "it stays in its directory");
    }
    let own = std::process::id().to_le_bytes();
    if message::put(monitor, kind::JOIN, &own).is_err() {
        return 0;
    }
    let Ok(Some((kind::JOIN, _))) = message::get(monitor) else {
        return 0;
    };
    let (answer, payload) = match act() {
        Ok(()) => (kind::NOTED, Vec::new()),
        Err(text) => (kind::FAILED, message::failure(Errno::EIO, &text)),
    };
    i32::from(message::put(monitor, answer, &payload).is_err())
}

/// Has it done, and waits for that. Behind an error nothing of it happens any more.
///
/// # Errors
/// Why it was not.
pub(crate) fn join(joiner: &OwnedFd) -> Result<(), String> {
    let gone = || "the process that was to do it is gone".to_owned();
    let end = Instant::now() + LIMIT;
    let Some((kind::JOIN, own)) = hear(joiner, end)? else {
        return Err(gone());
    };
    let own = own.try_into().map_err(|_| gone())?;
    // It is alive, or the socket would have ended: so the number is its own.
    let process = descriptor::pidfd_open(Pid::new(i32::from_le_bytes(own)));
    message::put(joiner, kind::JOIN, &[]).map_err(|_| gone())?;
    match hear(joiner, end) {
        Ok(Some((kind::NOTED, _))) => Ok(()),
        Ok(Some((kind::FAILED, payload))) => Err(message::parse_failure(&payload).1),
        Ok(_) => Err(gone()),
        Err(why) => {
            // What it did to sockets of a tree that runs would be theirs to suffer.
            if let Ok(process) = process
                && let Err(error) = descriptor::pidfd_kill(process.as_fd())
            {
                tracing::debug!(%error, "it is gone");
            }
            Err(why)
        }
    }
}

/// What it says; `None` at its end.
fn hear(joiner: &OwnedFd, end: Instant) -> Result<Option<(u8, Vec<u8>)>, String> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(joiner.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return Err(format!("it is not done after {} s", LIMIT.as_secs())),
            Ok(_) => return message::get(joiner).map_err(|error| error.to_string()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}
