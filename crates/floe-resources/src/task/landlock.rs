//! Landlock domains, which nothing tells of: no file of /proc, no call. But a task in one may look into no process
//! outside of it, whatever the domain's rules are (landlock(7), "Ptrace restrictions"). So each thread is asked to
//! compare a *decoy* with itself, by kcmp(2): a process of floe's in its PID and user namespace, which has the
//! thread's user and group and nothing to protect. Only a domain can forbid that.
//!
//! A decoy ends with floe: it waits for the end of a pipe that floe alone holds. The number that it takes in a PID namespace
//! of the tree's own is given back, so that the tree's next process gets it.

use crate::{
    ns::{self, NsError},
    refusal::Refusals,
    tree::FoundProcess,
};
use floe_sys::{
    Pid, capability,
    elf::waiting_program,
    fork, landlock,
    procfs::{ProcError, Status},
};
use floe_tracee::{Batch, CallId};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    sched::{CloneFlags, setns},
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{dup2_stdin, dup2_stdout, pipe2, read, write},
};
use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
};

const NAME: &str = "floe-decoy";
/// include/uapi/linux/kcmp.h.
const KCMP_VM: u64 = 1;

/// A decoy that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DecoyError {
    /// In the tree's PID namespace.
    #[error(transparent)]
    Namespace(#[from] NsError),
    /// /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// What it executes.
    #[error("make the program of a decoy")]
    Program(#[source] io::Error),
    /// As that user.
    #[error("make a process of user {user} and group {group}")]
    Process {
        /// Its user.
        user: u32,
        /// Its group.
        group: u32,
        /// Why not.
        #[source]
        source: Errno,
    },
}

/// The decoys for a tree, made when they are needed: one for each user and group in each PID and user namespace.
#[derive(Debug)]
pub struct Decoys {
    needed: bool,
    /// By PID namespace, by its position among the tree's, what its `ns_last_pid` was before the first of them.
    last: HashMap<usize, Last>,
    made: HashMap<(usize, u64, u32, u32), Decoy>,
    /// The user namespace of the process that was looked at last: its threads have the same.
    user: Option<(Pid, u64)>,
}

/// What a decoy writes to `ns_last_pid` of its namespace.
#[derive(Debug, Clone, Copy)]
enum Last {
    /// Nothing: the namespace is floe's.
    Untouched,
    /// The number before its own.
    BeforeMine,
    /// This one.
    Known(i32),
}

impl Last {
    /// In the PID namespace of a task, when no decoy has been made there.
    fn of_namespace(task: Pid) -> Self {
        if namespace("self") == namespace(&task.to_string()) {
            Self::Untouched
        } else {
            Self::BeforeMine
        }
    }
}

/// The user namespace of a task: a decoy must be in the same.
struct UserSpace {
    inode: u64,
    /// It, unless that is floe's.
    other: Option<OwnedFd>,
}

impl UserSpace {
    fn inode(task: Pid) -> Result<u64, ProcError> {
        let path = format!("/proc/{task}/ns/user");
        match std::fs::metadata(&path) {
            Ok(found) => Ok(found.ino()),
            Err(source) => Err(ProcError::Read { path, source }),
        }
    }

    fn of(task: Pid) -> Result<Self, DecoyError> {
        let open = |who: &str| {
            let path = format!("/proc/{who}/ns/user");
            let wrap = |source| ProcError::Read {
                path: path.clone(),
                source,
            };
            let file = File::open(&path).map_err(wrap)?;
            let inode = file.metadata().map_err(wrap)?.ino();
            Ok::<_, ProcError>((file, inode))
        };
        let ((file, inode), (_, own)) = (open(&task.to_string())?, open("self")?);
        let other = (inode != own).then(|| file.into());
        Ok(Self { inode, other })
    }
}

#[derive(Debug)]
struct Decoy {
    process: nix::unistd::Pid,
    /// Its id in its own namespace.
    inside: i32,
    /// It lives as long as this end is open.
    _life: OwnedFd,
}

impl Decoys {
    /// None so far.
    #[must_use]
    pub fn none_yet() -> Self {
        Self {
            needed: landlock::is_there(),
            last: HashMap::new(),
            made: HashMap::new(),
            user: None,
        }
    }

    /// Adds the question whether a thread is in a domain; `None` where no task can be.
    ///
    /// # Errors
    /// [`DecoyError`].
    pub(super) fn ask(
        &mut self,
        batch: &mut Batch,
        status: &Status,
        process: &FoundProcess,
    ) -> Result<Option<CallId>, DecoyError> {
        if !self.needed {
            return Ok(None);
        }
        let (user, group) = (status.uids[0], status.gids[0]);
        let task = process.task();
        let inode = match self.user {
            Some((known, inode)) if known == task => inode,
            _ => UserSpace::inode(task)?,
        };
        self.user = Some((task, inode));
        let inside = match self.made.entry((process.pid_namespace, inode, user, group)) {
            Entry::Occupied(made) => made.get().inside,
            Entry::Vacant(place) => {
                let last = self.last.entry(process.pid_namespace);
                let last = last.or_insert_with(|| Last::of_namespace(task));
                let thread = status.ns_pid.first().map_or(task, |tid| Pid::new(*tid));
                let space = UserSpace::of(task)?;
                let decoy = place.insert(Decoy::make((task, thread), (user, group, &space), *last)?);
                if matches!(last, Last::BeforeMine) {
                    *last = Last::Known(decoy.inside - 1);
                }
                decoy.inside
            }
        } as u64;
        Ok(Some(batch.attempt(
            "look at a decoy",
            libc::SYS_kcmp,
            &[inside, inside, KCMP_VM, 0, 0],
        )))
    }
}

/// The PID namespace of `/proc/WHO`; `None` where that is gone, which comes out elsewhere.
fn namespace(who: &str) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{who}/ns/pid")).ok()
}

fn user_namespace(who: &str) -> Option<u64> {
    let found = std::fs::metadata(format!("/proc/{who}/ns/user")).ok()?;
    Some(found.ino())
}

/// Adds a finding where the answer tells of a domain.
pub(super) fn refuse(
    batch: &Batch,
    asked: Option<CallId>,
    (found, ns_tid): (&FoundProcess, i32),
    refusals: &mut Refusals,
) {
    let forbidden = asked.is_some_and(|call| batch.result(call) == -i64::from(libc::EPERM));
    if forbidden {
        refusals.add(
            Some(&found.subject()),
            format!("Landlock domain of thread {ns_tid}"),
            "the kernel tells nobody what a domain forbids",
            "start the workload without it",
        );
    }
}

impl Decoy {
    /// For a thread of a process.
    fn make(
        (task, thread): (Pid, Pid),
        (user, group, space): (u32, u32, &UserSpace),
        last: Last,
    ) -> Result<Self, DecoyError> {
        let failed = |source| DecoyError::Process { user, group, source };
        let (end, life) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
        let (answer, ready) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
        let program = waiting_program(NAME).map_err(DecoyError::Program)?;
        let process = ns::run_inside(task, CloneFlags::CLONE_NEWPID, || {
            // By their numbers in the user namespace that floe may have entered on the way.
            let status = Status::read(&format!("/proc/{thread}")).map_err(io::Error::other)?;
            let (user, group) = (status.uids[0], status.gids[0]);
            Ok(fork::child(|| {
                act([&end, &ready, &program], (user, group, space), last)
            })?)
        })?;
        // Closed here, so that it shows as the end of the answer that the program runs.
        drop((end, ready, program));
        let mut decoy = Self {
            process,
            inside: 0,
            _life: life,
        };
        match read(&answer, &mut [0]) {
            Ok(0) => {}
            Ok(_) => return Err(failed(Errno::EPERM)),
            Err(source) => return Err(failed(source)),
        }
        let status = Status::read(&format!("/proc/{process}"))?;
        decoy.inside = status.ns_pid.last().copied().unwrap_or(0);
        Ok(decoy)
    }
}

/// What a decoy does: it becomes the user, gives up all else and executes a program that waits. Before that it is a copy of
/// floe, into which the user may not look: only the exec makes it dumpable again. Returns where something fails, and says so.
fn act([end, ready, program]: [&OwnedFd; 3], (user, group, space): (u32, u32, &UserSpace), last: Last) -> i32 {
    // Where floe is in it already, on its way to the PID namespace, it can't be entered once more.
    let space = (space.other.as_ref()).filter(|_| user_namespace("self").is_none_or(|inode| inode != space.inode));
    let kept = [end, ready, program].into_iter().chain(space);
    fork::close_all_but(&kept.map(AsRawFd::as_raw_fd).collect::<Vec<_>>());
    let last = match last {
        Last::Untouched => None,
        Last::BeforeMine => Some(nix::unistd::getpid().as_raw() - 1),
        Last::Known(number) => Some(number),
    };
    if let Some(number) = last {
        // Whoever writes it, it is that of the namespace that the writer is in. Where it can't be written, the tree's next
        // process gets a later number, which is no reason not to save it.
        let _ = std::fs::write("/proc/sys/kernel/ns_last_pid", number.to_string());
    }
    // Without new privileges an exec gives none back to who is root.
    let changed = prctl::set_dumpable(false)
        .and_then(|()| dup2_stdin(end))
        .and_then(|()| dup2_stdout(ready))
        .and_then(|()| prctl::set_no_new_privs())
        .and_then(|()| match space {
            None => capability::become_powerless(user, group),
            Some(space) => capability::become_powerful(user, group)
                .and_then(|()| setns(space, CloneFlags::CLONE_NEWUSER))
                .and_then(|()| capability::give_up()),
        });
    if changed.is_ok() {
        let name = CString::new(NAME).unwrap_or_default();
        let _ = fork::execute_descriptor(program.as_raw_fd(), &[name], &[]);
    }
    let _ = write(ready, &[0]);
    1
}

impl Drop for Decoy {
    fn drop(&mut self) {
        // It is floe's child and not reaped yet, so the number is its own.
        if let Err(error) = kill(self.process, Signal::SIGKILL).and_then(|()| waitpid(self.process, None)) {
            tracing::debug!(%error, "a decoy that was to end");
        }
    }
}
