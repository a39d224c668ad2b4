//! The target of a migration: takes connections, each in a process of its own, and does what its source says.
//!
//! ```text
//! hello -> offer (what stands in the way here?) -> image -> built, verified, held frozen -> told -> runs, or goes
//! hello -> told (what an earlier connection has left held)
//! ```

mod build;
mod files;
mod late;
mod place;
mod rest;
mod session;
mod spool;
mod stage;
mod streams;
mod swap;
mod tree;

use crate::{
    keys::Keys,
    link::{Incoming, Link, LinkError, Listener, Manner, message::Id, stdio},
    protocol::Decision,
    refusal::Refusal,
    worker::Counts,
};
use floe_checkpoint::{
    restore::{Differences, PidMethod},
    stage::{Control, Injection},
};
use floe_image::ImageFiles;
use floe_resources::ns::{mounts::Given, network::GivenEnds};
use floe_sandbox::StateDir;
use floe_sys::fork;
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpid},
};
use session::{NEVER, Session};
use std::{
    error::Error,
    io,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// How long it may take until both sides know whom they talk to.
const GREET: Duration = Duration::from_secs(10);
/// Connections at the same time: a migration may have 17 of them.
const SESSIONS: usize = 64;

/// Makes the process fit for the tree of an image, e.g. root of a user namespace.
pub type Become<'a> = dyn Fn(&ImageFiles) -> Result<(), Box<dyn Error + Send + Sync>> + 'a;

/// How sandboxes are received.
pub struct Request<'a> {
    /// Where they are kept.
    pub state_dir: &'a StateDir,
    /// Keys; `None` without encryption.
    pub keys: Option<&'a Keys>,
    /// How long the other side may be silent.
    pub silence: Duration,
    /// How PIDs are chosen.
    pub pid_method: PidMethod,
    /// Paths of this host for mounts of a sandbox.
    pub mounts: &'a Given,
    /// Ends of devices at this host. Those for devices that a sandbox has not are not for it.
    pub net: &'a GivenEnds,
    /// What of this host may differ.
    pub differences: Differences,
    /// Which files a source may have made.
    pub files: &'a Files,
    /// Called before an image is looked at or restored, in a process that does nothing else.
    pub become_user: &'a Become<'a>,
    /// Told what happens.
    pub tell: &'a dyn Fn(&Event<'_>),
}

/// Files that a source may have made.
#[derive(Debug)]
pub enum Files {
    /// None.
    None,
    /// What its sandboxes use, wherever that is: whoever may is root here.
    Used,
    /// Their root trees, below these directories.
    Rootfs(Vec<PathBuf>),
}

/// What happens at a target.
#[derive(Debug)]
pub enum Event<'a> {
    /// A sandbox came and runs.
    Runs {
        /// Its name; the id of its hand-over where it came by an earlier connection.
        name: &'a str,
        /// From whom.
        from: &'a str,
        /// What it consists of, where it came by this connection.
        counts: Option<Counts>,
    },
    /// One was given up, at either side, and nothing of it is left.
    GivenUp {
        /// From whom.
        from: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// Something stays of a root tree that is not needed any more.
    Left {
        /// From whom.
        from: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// One is held, and the source is gone without a word.
    Held {
        /// Its name.
        name: &'a str,
        /// From whom.
        from: &'a str,
    },
}

impl Request<'_> {
    fn manner(&self, interrupted: &'static AtomicBool) -> Manner<'_> {
        Manner {
            keys: self.keys,
            patience: self.silence,
            interrupted,
            demand: None,
            unattended: true,
        }
    }
}

/// Before a sandbox is let run by hand: what came with it is to stay.
///
/// # Errors
/// Where that can't be noted.
pub fn commit_files(state_dir: &StateDir, id: &str) -> Result<(), Refusal> {
    let id = Id::try_from(id.to_owned()).map_err(Refusal::plain)?;
    swap::commit(state_dir, &id)
}

/// What came with a sandbox, of which a user has decided by hand what becomes of it, stays or goes with it.
///
/// # Errors
/// Where some of it can't be removed.
pub fn settle_files(state_dir: &StateDir, id: &str, decision: Decision) -> Result<(), Refusal> {
    let id = Id::try_from(id.to_owned()).map_err(Refusal::plain)?;
    place::settle(state_dir, &id, decision)?;
    swap::settle(state_dir, &id)?;
    swap::clear(state_dir, &id)
}

/// Receives what comes in until told to stop. The caller must have one thread.
///
/// # Errors
/// Those of accept(2) and fork(2).
pub fn receive(listener: Listener, request: &Request<'_>, control: &Control<'_>) -> io::Result<()> {
    // One that was killed may have left it empty.
    crate::record::tidy(request.state_dir);
    let mut listener = Some(listener);
    let mut sessions: Vec<Pid> = Vec::new();
    let mut leaves_trees = true;
    let mut stops = false;
    let result = loop {
        // Those that take memory of trees that run do not end by that, and who brings it is let in until they do.
        if !stops && control.interrupted.load(Ordering::Relaxed) {
            stops = true;
            tell_to_stop(&sessions);
        }
        sessions.retain(|session| match how_it_ended(*session) {
            None => true,
            Some(was_killed) => {
                leaves_trees |= was_killed;
                false
            }
        });
        if stops && sessions.is_empty() {
            break Ok(());
        }
        if std::mem::take(&mut leaves_trees) {
            match fork::child(|| clear_left(request)) {
                Ok(child) => sessions.push(child),
                Err(error) => break Err(error.into()),
            }
        }
        if sessions.len() >= SESSIONS {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        let Some(waiting) = &listener else { break Ok(()) };
        let incoming = match waiting.next() {
            Ok(None) => continue,
            Ok(Some(incoming)) => incoming,
            // One that hung up at once.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => continue,
            Err(error) => break Err(error),
        };
        let parent = getpid();
        let session = fork::child(|| {
            if let Some(listener) = listener.take() {
                listener.disinherit();
            }
            if fork::signal_at_parents_end(Signal::SIGTERM, parent).is_err() {
                return 1;
            }
            let from = incoming.from().to_owned();
            // It was told before this one came.
            let interrupted = if stops { &NEVER } else { control.interrupted };
            match take(incoming, request, interrupted) {
                Ok(link) => serve(link, request, (interrupted, control.fail_at), stops),
                Err(error) => {
                    let reason = Refusal::of(&error).reason;
                    (request.tell)(&Event::GivenUp {
                        from: &from,
                        reason: &reason,
                    });
                    1
                }
            }
        });
        match session {
            Ok(session) => sessions.push(session),
            Err(error) => break Err(error.into()),
        }
    };
    drop(listener);
    tell_to_stop(&sessions);
    for session in sessions {
        while let Err(Errno::EINTR) = waitpid(session, None) {}
    }
    result
}

fn tell_to_stop(sessions: &[Pid]) {
    for session in sessions {
        if let Err(error) = kill(*session, Signal::SIGTERM) {
            tracing::debug!(%error, "a connection has ended");
        }
    }
}

/// Agrees on keys with who has connected: by those that are pinned now.
fn take(incoming: Incoming, request: &Request<'_>, interrupted: &'static AtomicBool) -> Result<Link, LinkError> {
    let keys = request.keys.map(Keys::again).transpose()?;
    let manner = Manner {
        keys: keys.as_ref(),
        ..request.manner(interrupted)
    };
    incoming.take(manner, Instant::now() + GREET)
}

/// Whether it was killed; `None` where it has not ended.
fn how_it_ended(session: Pid) -> Option<bool> {
    match waitpid(session, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => None,
        Ok(WaitStatus::Signaled(..)) => Some(true),
        Ok(_) | Err(_) => Some(false),
    }
}

/// Removes root trees of which nothing has come since who made them was killed.
fn clear_left(request: &Request<'_>) -> i32 {
    match swap::clear_left(request.state_dir) {
        Ok(()) => 0,
        Err(Refusal { reason, .. }) => {
            (request.tell)(&Event::Left {
                from: "earlier",
                reason: &reason,
            });
            1
        }
    }
}

/// Receives on standard input and output. The caller must have one thread.
///
/// # Errors
/// [`LinkError`].
pub fn receive_here(request: &Request<'_>, control: &Control<'_>) -> Result<i32, LinkError> {
    clear_left(request);
    let link = stdio(request.manner(control.interrupted))?;
    Ok(serve(link, request, (control.interrupted, control.fail_at), false))
}

fn serve(
    link: Link,
    request: &Request<'_>,
    (interrupted, fail_at): (&'static AtomicBool, FailAt<'_>),
    stops: bool,
) -> i32 {
    let session = Session {
        from: link.peer().to_owned(),
        request,
        interrupted,
        stops,
        fail_at,
    };
    match session.run(link) {
        Ok(()) => 0,
        Err(refusal) => {
            (request.tell)(&Event::GivenUp {
                from: &session.from,
                reason: &refusal.reason,
            });
            1
        }
    }
}

/// What connections need of a [`Control`], whose observer is the parent's.
type FailAt<'a> = Option<&'a Injection>;
