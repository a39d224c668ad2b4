//! Checkpoint: the stages on one page.
//!
//! ```text
//! freeze -> collect -> seize (thaw) -> inspect -> write -> commit -> end or resume
//! ```
//! With the pages saved in the background, [`Then::RunOnMeanwhile`]:
//!
//! ```text
//! ... inspect -> copy memory -> write the rest -> let go -> write the copies -> commit
//! ```
//! Where what the tree writes is to be followed from then on, that begins right before it runs on.
//!
//! Nothing of the tree is changed before `end`. Whatever fails before it, guards undo: seized tasks are let go with their
//! own registers, the cgroup is thawed, the unnamed output file vanishes.

mod background;
mod console;
mod following;
mod from_outside;
mod inspect;
mod machine;
mod mappings;
mod output;
mod patience;
mod seize;
mod traces;
mod tty;
mod write;

pub use background::CopyError;
pub use inspect::InspectError;
pub(crate) use machine::read_vdso;
pub use output::{OpenOutput, Output, OutputError, Publish};
pub use seize::SeizeError;
pub use traces::{freeze_without_traces, thaw_without_traces};
pub use tty::{TtyError, terminal_of};
pub use write::WriteStageError;

use crate::stage::{Control, StageError};
use background::Copies;
use floe_cgroup::Cgroup;
use floe_image::{Level, Summary, record::OwnerRecord};
use floe_resources::{
    file::{ConsoleLinks, Externals, FileError, TcpMode},
    mm::Base,
    ns,
    refusal::{Refusal, Refusals},
    task::Sleepers,
    tree::FoundTree,
};
use floe_sandbox::{ConsoleState, LinkState, ProcessorState, Sandbox, SandboxError};
use floe_sys::{
    Pid, parallel,
    procfs::{self, ProcError, Status},
};
use following::Following;
use from_outside::PagesLookedAt;
use inspect::Inspected;
use patience::Patience;
use seize::HeldTree;
use std::{
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use write::{Since, Writing};

/// The names of the stages, in order.
#[must_use]
pub fn stages(then: Then, track: bool) -> Vec<&'static str> {
    let in_background = then == Then::RunOnMeanwhile;
    let all = [
        ("freeze", true),
        ("collect", true),
        ("seize", true),
        ("inspect", true),
        ("open-output", true),
        ("copy", in_background),
        ("pages", true),
        ("follow", in_background && track),
        ("let-go", in_background),
        ("commit", true),
        ("follow", !in_background && track),
        ("end", true),
    ];
    all.into_iter()
        .filter(|(_, is_there)| *is_there)
        .map(|(name, _)| name)
        .collect()
}

/// What to save.
#[derive(Debug)]
pub enum Target {
    /// A sandbox of floe's: PID 1, its cgroup, its name, its streams.
    Sandbox {
        /// PID 1.
        root: Pid,
        /// Its cgroup, where it has one.
        cgroup: Option<Cgroup>,
        /// Its cgroups in further hierarchies.
        further: Vec<PathBuf>,
        /// Its name.
        name: String,
        /// How its streams lead to the monitor.
        links: ConsoleLinks,
        /// Its folder, where its monitor is reached.
        folder: PathBuf,
        /// Its command line.
        command: Vec<String>,
        /// What joins its network to the host's.
        link: Option<LinkState>,
        /// What its programs may have chosen by.
        processor: Box<ProcessorState>,
    },
    /// A tree that floe did not start: its root.
    Tree {
        /// The root.
        root: Pid,
        /// The cgroup that holds exactly this tree, where there is one.
        cgroup: Option<Cgroup>,
        /// The terminal that counts as its own, see [`terminal_of`]; or none.
        links: ConsoleLinks,
    },
}

impl Target {
    /// A sandbox that runs.
    ///
    /// # Errors
    /// [`SandboxError`] where it does not.
    pub fn of_sandbox(sandbox: &Sandbox) -> Result<Self, SandboxError> {
        let root = sandbox.pid1()?;
        let links = match sandbox.console() {
            ConsoleState::Pipes(pipes) => ConsoleLinks {
                pipes: *pipes,
                ..ConsoleLinks::default()
            },
            ConsoleState::Terminal(path) => ConsoleLinks {
                terminal: Some(path.clone().into_os_string().into_vec()),
                ..ConsoleLinks::default()
            },
        };
        Ok(Self::Sandbox {
            root,
            cgroup: sandbox.cgroup()?,
            further: sandbox.cgroups()?.further,
            name: sandbox.name().to_owned(),
            links,
            folder: sandbox.folder().to_owned(),
            command: sandbox.state().command.clone(),
            link: sandbox.state().link.clone(),
            processor: Box::new(sandbox.state().processor.clone()),
        })
    }

    fn root(&self) -> Pid {
        match self {
            Self::Sandbox { root, .. } | Self::Tree { root, .. } => *root,
        }
    }

    /// How its streams lead to its terminal, or to the monitor.
    fn links(&self) -> &ConsoleLinks {
        match self {
            Self::Sandbox { links, .. } | Self::Tree { links, .. } => links,
        }
    }

    /// Where its monitor is reached.
    fn folder(&self) -> Option<&Path> {
        match self {
            Self::Sandbox { folder, .. } => Some(folder),
            Self::Tree { .. } => None,
        }
    }

    /// What joins its network to the host's.
    fn link(&self) -> Option<&LinkState> {
        match self {
            Self::Sandbox { link, .. } => link.as_ref(),
            Self::Tree { .. } => None,
        }
    }

    /// What its programs may have chosen by.
    fn processor(&self) -> ProcessorState {
        match self {
            Self::Sandbox { processor, .. } => processor.as_ref().clone(),
            Self::Tree { .. } => ProcessorState::default(),
        }
    }

    /// The cgroup that freezes it.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Cgroup> {
        match self {
            Self::Sandbox { cgroup, .. } | Self::Tree { cgroup, .. } => cgroup.as_ref(),
        }
    }

    /// The directories of all cgroups that are known to be its own.
    fn own_cgroups(&self) -> Vec<PathBuf> {
        let further = match self {
            Self::Sandbox { further, .. } => further.as_slice(),
            Self::Tree { .. } => &[],
        };
        let freezer = self.cgroup().map(Cgroup::path);
        freezer
            .into_iter()
            .chain(further.iter().map(PathBuf::as_path))
            .map(Path::to_owned)
            .collect()
    }
}

/// What becomes of a tree that is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It ends.
    End,
    /// It runs on when the image is complete.
    RunOn,
    /// It runs on, and the image has no memory: it tells what stands in the way of a restore elsewhere.
    RunOnUnsaved,
    /// It runs on as soon as all but its memory is saved, of which the image has what was there at that instant.
    RunOnMeanwhile,
}

/// How to save it.
pub struct Request<'a> {
    /// What.
    pub target: Target,
    /// The user namespace that floe has entered for it, where that is an ordinary user's.
    pub owner: Option<OwnerRecord>,
    /// Where to; `None` for a dry run.
    pub output: Option<Output>,
    /// How much work goes into making its pages small.
    pub level: Level,
    /// The image that the new one is to be based on: what did not change since is not stored again.
    pub base: Option<Base>,
    /// What becomes of the tree.
    pub then: Then,
    /// Whether what it writes from then on is followed, for an image on the base of this one. Takes a sandbox's monitor.
    pub track: bool,
    /// What becomes of TCP connections whose other ends are outside of the tree.
    pub tcp: TcpMode,
    /// How long what passes by itself is waited for.
    pub patience: Duration,
    /// What the user says of other ends and files outside of it.
    pub external: Externals,
    /// Whether a process that may be killed stands before this one: see [`confines_calls`].
    pub behind_front: bool,
    /// Called when the image is synced and the tree is about to be ended. It may end PID 1 itself as its last deed, where that
    /// takes the whole tree.
    pub before_end: &'a mut dyn FnMut() -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Report {
    /// Processes, zombies among them.
    pub processes: usize,
    /// Threads of living processes.
    pub threads: usize,
    /// Bytes of memory that the image holds.
    pub memory: u64,
    /// How long the tree stood still.
    pub frozen: Duration,
    /// About the file; `None` after a dry run.
    pub image: Option<Summary>,
    /// Processes whose memory was saved while they stood still though it was to be saved in the background, and why.
    pub not_copied: Vec<String>,
    /// Processes that are not followed though they were to be, and why.
    pub not_followed: Vec<String>,
}

/// Why a checkpoint did not come about.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The tree has state that can't be carried.
    #[error("{} in the way of this checkpoint", crate::things_stand(.0.len()))]
    Refused(Vec<Refusal>),
    /// Interrupted, or made to fail.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The cgroup.
    #[error("freeze the cgroup of the tree")]
    Cgroup(#[from] floe_cgroup::CgroupError),
    /// Stopping the tree.
    #[error(transparent)]
    Seize(#[from] SeizeError),
    /// Reading it.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// Copying memory.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// Writing the image.
    #[error(transparent)]
    Write(#[from] WriteStageError),
    /// The output file.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Packets of the tree's connections.
    #[error(transparent)]
    File(#[from] FileError),
    /// A filter came when nobody was prepared for it.
    #[error("a task of the tree has confined its system calls (seccomp) at this very moment; try again")]
    Confined,
    /// The caller's last word.
    #[error("announce the end of the tree")]
    Announce(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Whether system calls of some task are confined (seccomp), so that calls of floe's might end it if this process were
/// killed while they run. Then the checkpoint must be made by one that is not what others kill.
///
/// # Errors
/// [`ProcError`].
pub fn confines_calls(target: &Target) -> Result<bool, ProcError> {
    // What can't be read, or is gone, the checkpoint says better.
    let Some(cgroup) = target.cgroup() else {
        return match FoundTree::read(target.root()) {
            Err(error) if error.is_gone() => Ok(false),
            tree => Ok(has_confined(&tree?)),
        };
    };
    let mut tasks = Vec::new();
    for pid in cgroup.processes().unwrap_or_default() {
        match procfs::threads(pid) {
            Ok(tids) => tasks.extend(tids.into_iter().map(|tid| (pid, tid))),
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error),
        }
    }
    for confines in parallel::map(&tasks, parallel::FEW_FILES, |(pid, tid)| {
        task_confines_calls(*pid, *tid)
    }) {
        if confines? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn task_confines_calls(pid: Pid, tid: Pid) -> Result<bool, ProcError> {
    match Status::read(&format!("/proc/{pid}/task/{tid}")) {
        Err(error) if error.is_gone() => Ok(false),
        status => Ok(status?.seccomp != 0),
    }
}

fn has_confined(tree: &FoundTree) -> bool {
    let mut threads = tree.living().flat_map(|process| &process.threads);
    threads.any(|thread| thread.status.seccomp != 0)
}

/// Saves a tree.
///
/// # Errors
/// [`CheckpointError`]; the tree then runs on as if nothing had happened.
pub fn checkpoint(mut request: Request<'_>, control: &Control<'_>) -> Result<Report, CheckpointError> {
    let mut patience = Patience::new(request.patience);
    if request.then == Then::End && request.tcp == TcpMode::Established {
        patience.let_nobody_in(request.target.root());
    }
    let mut following = request.target.folder().map_or_else(Following::default, Following::ask);
    let mut sleepers = Sleepers::default();
    let (held, inspected, started) = loop {
        let started = Instant::now();
        let mut held = HeldTree::hold(&request.target, sleepers, control).map_err(|error| match error {
            SeizeError::Refused(list) => CheckpointError::Refused(list),
            other => other.into(),
        })?;
        following.recognise(&mut held, request.target.folder())?;
        match look(&held, &request, control)? {
            Ok(inspected) => break (held, inspected, started),
            Err(findings) => {
                let runs_on = !held.was_frozen();
                sleepers = std::mem::take(&mut held.sleepers);
                sleepers.ran_on();
                held.release()?;
                if !runs_on || !patience.waits_for(&findings, request.target.root()) {
                    return Err(CheckpointError::Refused(findings));
                }
            }
        }
    };
    let mut report = describe(&held.tree, &inspected);
    let Some(output) = request.output.take() else {
        drop(held);
        report.frozen = started.elapsed();
        return Ok(report);
    };
    control.enter("open-output")?;
    let file = output.open()?;
    let earlier = Since::find(request.base.as_ref(), &following, &held);
    if request.then == Then::RunOnMeanwhile {
        return save_meanwhile(
            (held, inspected, following),
            (&request, &earlier),
            (file, report),
            (started, control),
        );
    }
    let sink = file.sink(control.interrupted)?;
    let mut writing = Writing::start(
        (&inspected, request.owner.as_ref()),
        sink,
        (&request.level, &earlier),
        control,
    )?;
    let id = writing.id();
    control.enter("pages")?;
    let mut copies = Copies::default();
    match request.then {
        Then::RunOnUnsaved => writing.no_pages(&inspected)?,
        _ => writing.pages(&held, &inspected, &mut copies)?,
    }
    report.image = Some(writing.finish()?);
    control.enter("commit")?;
    file.sync()?;
    if request.track {
        control.enter("follow")?;
        report.not_followed = following.begin(&held, &copies.owners(&inspected), request.target.folder());
    }
    // The last moment at which nothing has happened: from the image's name on, the tree ends or is released.
    control.enter("end")?;
    if request.then != Then::End {
        file.publish()?;
        report.not_followed.extend(following.hand(id, request.target.folder()));
        held.release()?;
    } else {
        // Whoever is announced the end may bring it about.
        let _ending = inspected.files.hold_on(request.target.root())?;
        (request.before_end)().map_err(CheckpointError::Announce)?;
        file.publish()?;
        ns::network::cut_off(&inspected.networks);
        held.end()?;
    }
    report.frozen = started.elapsed();
    Ok(report)
}

/// Writes the image of a tree that runs on meanwhile.
fn save_meanwhile(
    (held, inspected, mut following): (HeldTree, Inspected, Following),
    (request, earlier): (&Request<'_>, &Since<'_>),
    (file, mut report): (OpenOutput, Report),
    (started, control): (Instant, &Control<'_>),
) -> Result<Report, CheckpointError> {
    control.enter("copy")?;
    // Whatever fails, what is held of the tree is let go before the copies end.
    let mut copies = Copies::default();
    let mut inspected = inspected;
    let held = held;
    copies.make(&held, &mut inspected, request.target.cgroup())?;
    let sink = file.sink(control.interrupted)?;
    let mut writing = Writing::start(
        (&inspected, request.owner.as_ref()),
        sink,
        (&request.level, earlier),
        control,
    )?;
    let id = writing.id();
    control.enter("pages")?;
    writing.pages(&held, &inspected, &mut copies)?;
    writing.settle()?;
    if request.track {
        control.enter("follow")?;
        report.not_followed = following.begin(&held, &copies.owners(&inspected), request.target.folder());
    }
    control.enter("let-go")?;
    held.release()?;
    // What floe has open of the tree's it would hold open.
    drop(inspected);
    report.frozen = started.elapsed();
    writing.copied_pages(&mut copies)?;
    report.memory = writing.stored_bytes();
    report.image = Some(writing.finish()?);
    report.not_copied = copies.not_copied().to_vec();
    control.enter("commit")?;
    file.sync()?;
    control.enter("end")?;
    file.publish()?;
    report.not_followed.extend(following.hand(id, request.target.folder()));
    Ok(report)
}

/// All of a held tree, or what stands in the way.
fn look(
    held: &HeldTree,
    request: &Request<'_>,
    control: &Control<'_>,
) -> Result<Result<Inspected, Vec<Refusal>>, CheckpointError> {
    if !request.behind_front && has_confined(&held.tree) {
        return Err(CheckpointError::Confined);
    }
    control.enter("inspect")?;
    let mut refusals = Refusals::default();
    let pages_looked_at = match request.then {
        Then::RunOnMeanwhile if request.output.is_some() => PagesLookedAt::InCopies,
        _ => PagesLookedAt::Now,
    };
    let inspected = Inspected::read(
        held,
        (&request.target, (request.tcp, &request.external), pages_looked_at),
        &mut refusals,
        control,
    )?;
    Ok(if refusals.is_empty() {
        Ok(inspected)
    } else {
        Err(refusals.into_sorted())
    })
}

fn describe(tree: &FoundTree, inspected: &Inspected) -> Report {
    Report {
        processes: tree.processes.len(),
        threads: tree.threads().count(),
        memory: inspected.bytes,
        frozen: Duration::ZERO,
        image: None,
        not_copied: Vec::new(),
        not_followed: Vec::new(),
    }
}
