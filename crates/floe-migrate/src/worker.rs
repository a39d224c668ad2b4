//! Child processes that do the work on a tree, apart from the one that talks to the other host: a tracer must not wait for
//! a network, must have one thread when it forks, and may be root of a user namespace. One that loses its parent is told to
//! stop, and undoes what it did.

use crate::{
    link::{
        Link,
        frame::{self, Frame, FrameError},
    },
    refusal::Refusal,
};
use floe_checkpoint::stage::Observer;
use floe_sys::fork;
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{Pid, getpid},
};
use serde::{Deserialize, Serialize};
use std::{
    cell::RefCell,
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// What a worker tells.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// A stage begins.
    Stage(String),
    /// So many bytes of pages are done, of so many.
    Pages(u64, u64),
    /// It did not come about; nothing of it is left.
    Refused(Refusal),
    /// An image is complete, and its tree stands still until there is a [`Verdict`].
    Complete,
    /// All is done.
    Done(Counts),
}

/// What a worker has done.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Processes.
    pub processes: u64,
    /// Threads.
    pub threads: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// How long a tree stood still that was saved.
    pub frozen: Duration,
}

/// What becomes of a tree that stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It ends; PID 1 has been killed.
    End,
    /// It runs on.
    LetGo,
}

/// A worker, as its parent sees it. Dropped, it is told to stop and waited for.
#[derive(Debug)]
pub struct Worker {
    pid: Option<Pid>,
    /// Reports and verdicts.
    pub control: UnixStream,
    /// The image that it writes.
    pub data: UnixStream,
}

/// The ends that a worker has itself.
#[derive(Debug)]
pub struct Ends {
    control: RefCell<UnixStream>,
    /// For the image.
    pub data: UnixStream,
}

/// How long a worker that is told to stop may take until it is killed.
const UNDO: Duration = Duration::from_secs(30);

impl Worker {
    /// Starts one. It has not the link, which is its parent's. The caller must have one thread.
    ///
    /// # Errors
    /// Those of fork(2) and socketpair(2).
    pub fn start(link: &mut Link, work: impl FnOnce(&Ends) -> Result<Counts, Refusal>) -> io::Result<Self> {
        let (control, far_control) = UnixStream::pair()?;
        let (data, far_data) = UnixStream::pair()?;
        let parent = getpid();
        let mut near = Some((control, data));
        let pid = fork::child(|| {
            // The end of the parent must show.
            drop(near.take());
            link.disinherit();
            let ends = Ends {
                control: RefCell::new(far_control),
                data: far_data,
            };
            if fork::signal_at_parents_end(Signal::SIGTERM, parent).is_err() {
                return 1;
            }
            let (report, status) = match work(&ends) {
                Ok(counts) => (Report::Done(counts), 0),
                Err(refusal) => (Report::Refused(refusal.shortened()), 1),
            };
            ends.tell(&report);
            status
        })?;
        let (control, data) = near.expect("only the child takes it");
        Ok(Self {
            pid: Some(pid),
            control,
            data,
        })
    }

    /// Its PID and when it started.
    #[must_use]
    pub fn identity(&self) -> Option<(i32, u64)> {
        let pid = self.pid?.as_raw();
        let stat = floe_sys::procfs::Stat::of(floe_sys::Pid::new(pid)).ok()?;
        Some((pid, stat.starttime))
    }

    /// The next report; `None` where it is gone.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn report(&mut self) -> Result<Option<Report>, FrameError> {
        match frame::receive(&mut self.control, &mut []) {
            Ok(Frame::Message(report)) => Ok(Some(report)),
            Ok(Frame::Data(_) | Frame::Piece(..) | Frame::Alive) => Err(FrameError::Kind(0)),
            Err(FrameError::End) => Ok(None),
            Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Tells it what becomes of its tree. One that is gone has let go of it.
    pub fn tell(&mut self, verdict: Verdict) {
        if let Err(error) = frame::send(&mut self.control, &verdict) {
            tracing::debug!(%error, "the worker is gone");
        }
    }

    /// Waits for its end. What it reported last, if that was not heard yet.
    pub fn wait(mut self) -> Option<Report> {
        let mut last = None;
        while let Ok(Some(report)) = self.report() {
            last = Some(report);
        }
        if let Some(pid) = self.pid.take() {
            while let Err(Errno::EINTR) = waitpid(pid, None) {}
        }
        last
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let Some(pid) = self.pid else { return };
        let send = |signal| {
            if let Err(error) = kill(pid, signal) {
                tracing::debug!(%error, "the worker is gone");
            }
        };
        send(Signal::SIGTERM);
        for end in [&self.control, &self.data] {
            if let Err(error) = end.shutdown(Shutdown::Both) {
                tracing::debug!(%error, "the worker has closed its end");
            }
        }
        let begin = Instant::now();
        loop {
            match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) if status.pid().is_none() => {}
                Err(Errno::EINTR) => {}
                _ => return,
            }
            if begin.elapsed() > UNDO {
                send(Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Ends {
    /// Tells the parent. One that is gone is noticed by a signal.
    pub fn tell(&self, report: &Report) {
        if let Err(error) = frame::send(&mut *self.control.borrow_mut(), report) {
            tracing::debug!(%error, "the parent is gone");
        }
    }

    /// What becomes of the tree; `None` where the parent is gone.
    pub fn verdict(&self) -> Option<Verdict> {
        loop {
            match frame::receive(&mut *self.control.borrow_mut(), &mut []) {
                Ok(Frame::Message(verdict)) => return Some(verdict),
                Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return None,
            }
        }
    }
}

/// Hands what a worker does on to its parent.
pub struct Relay<'a>(pub &'a Ends);

impl Observer for Relay<'_> {
    fn stage(&self, name: &'static str) {
        self.0.tell(&Report::Stage(name.to_owned()));
    }

    fn pages(&self, done: u64, total: u64) {
        self.0.tell(&Report::Pages(done, total));
    }
}
