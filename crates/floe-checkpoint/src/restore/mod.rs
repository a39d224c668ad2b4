//! Restore: the stages on one page.
//!
//! ```text
//! open -> plan -> preflight -> launch -> seed -> mounts -> network -> contents -> tree -> files -> clocks -> state ->
//! freeze -> verify -> thaw
//! ```
//! Up to `launch` nothing is made. From then on everything hangs on the launch: when it is dropped uncommitted, or floe
//! dies, the monitor kills PID 1, with it the whole namespace, and removes what there is.

mod abilities;
mod births;
mod cgroups;
mod clocks;
mod console;
mod contents;
mod disk;
mod files;
mod lazy;
mod link;
mod mounts;
mod nameless;
mod namespaces;
mod networks;
mod plan;
mod preflight;
mod processor;
mod sharing;
mod state;
mod supply;
mod tree;
mod users;
mod vdso;
mod verify;

pub use disk::FilesMode;
pub use lazy::Postponed;
pub use plan::{PlanError, Step, plan};
pub use preflight::{Obstacle, obstacles};
pub use processor::ProcessorMode;

use crate::{
    checkpoint::InspectError,
    stage::{Control, StageError},
};
use contents::MadeContents;
use floe_image::{
    Image, ImageFiles, Numbering, ReadError,
    record::{ConsoleRecord, NamespaceOrigin},
};
use floe_resources::{
    cgroup::{CgroupPlan, TreeError},
    channel::{Channel, ChannelError},
    file::{
        BoundNames, FileError, Held, Outside, OutsideEnds, PlaceError, Stash,
        terminal::{MadeTerminals, has_terminals},
    },
    ipc::IpcError,
    mm::{BuildError, FillError},
    ns::{
        NsError,
        mounts::MountError,
        network::{NetworkError, NetworkSpace},
    },
    task::{RestoreError as TaskError, SeedState},
};
use floe_sandbox::{
    AttachError, Console, First, HeldName, Holding, Launch, LaunchError, Origin, Published, SandboxSpec, StateDir,
    WindowSize,
};
use floe_sys::{Pid, descriptor, procfs::ProcError, sched::OneProcessor};
use floe_tracee::{Puppet, PuppetError, Stopped, TraceError};
use lazy::LookedAfter;
use link::Publish;
use namespaces::Namespaces;
use networks::Networks;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};
use sharing::{Lending, Memory, Wants};
use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::mpsc,
    time::{Duration, Instant},
};
use tree::World;
use verify::Original;

/// The names of the stages, in order.
pub const STAGES: [&str; 15] = [
    "open",
    "plan",
    "preflight",
    "launch",
    "seed",
    "mounts",
    "network",
    "contents",
    "tree",
    "files",
    "clocks",
    "state",
    "freeze",
    "verify",
    "thaw",
];

/// How a task is given its PID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PidMethod {
    /// Writes the number before it to /proc/sys/kernel/ns_last_pid.
    #[default]
    NsLastPid,
    /// clone3(2) with set_tid.
    SetTid,
}

/// What stands in the way where files on disk have changed, and where the processor is a lesser one.
pub type Differences = (FilesMode, ProcessorMode);

/// A caller's last word before a restored tree runs.
pub type BeforeThaw<'a> = dyn FnMut(&Launch) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

/// What to restore, and how.
pub struct Request<'a> {
    /// The image; a stream was spooled into a file.
    pub image: ImageFiles,
    /// Where sandboxes are kept.
    pub state_dir: &'a StateDir,
    /// Name of the new sandbox; the image's where `None`.
    pub name: Option<String>,
    /// How PIDs are chosen.
    pub pid_method: PidMethod,
    /// Whether somebody stays with it: its input is a pipe also where it had none, and no trace of it stays when it ends.
    pub foreground: bool,
    /// What becomes of TCP connections whose other ends are outside of the tree, and what else of the host's it gets.
    pub outside: Outside<'a>,
    /// What of this host may differ from the one that the image was made on.
    pub differences: Differences,
    /// Ports of the host that are to be the sandbox's; those that were, where `None`.
    pub publish: Option<Vec<Published>>,
    /// By which hand-over it comes from another host: it is left frozen until that is decided. It runs where there is none.
    pub hold: Option<&'a Holding>,
    /// Whether memory comes while the tree runs, as far as it can.
    pub lazy: bool,
    /// Called when the tree stands verified and is about to run, e.g. to take up its streams.
    pub before_thaw: &'a mut BeforeThaw<'a>,
}

/// What was done.
#[derive(Debug)]
pub struct Report {
    /// Name of the sandbox.
    pub name: String,
    /// Whether its streams are a pseudo-terminal.
    pub has_terminal: bool,
    /// Processes.
    pub processes: usize,
    /// Bytes of pages written.
    pub memory: u64,
    /// What comes later, where that was asked for.
    pub postponed: Postponed,
    /// From the launch to the thaw.
    pub elapsed: Duration,
}

/// Why a restore did not come about.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The image.
    #[error("read the image")]
    Image(#[from] ReadError),
    /// The tree can't be made.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// This host lacks something.
    #[error("{} in the way of this restore", crate::things_stand(.0.len()))]
    Obstacles(Vec<Obstacle>),
    /// Interrupted, or made to fail.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The sandbox.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A task.
    #[error(transparent)]
    Puppet(#[from] PuppetError),
    /// Ptrace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Memory.
    #[error("build the memory of process {pid}")]
    Build {
        /// Whose.
        pid: i32,
        /// Why not.
        #[source]
        source: Box<BuildError>,
    },
    /// Contents of deleted files and shared memory.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// System V IPC.
    #[error(transparent)]
    Ipc(#[from] IpcError),
    /// Mounts.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Networks.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Namespaces.
    #[error(transparent)]
    Namespace(#[from] NsError),
    /// Descriptors.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Files for tasks.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A task's own state.
    #[error("restore the state of task {tid}")]
    Task {
        /// Whose.
        tid: i32,
        /// Why not.
        #[source]
        source: Box<TaskError>,
    },
    /// /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// The tree's cgroups.
    #[error("restore the cgroups of the tree")]
    Cgroups(#[from] TreeError),
    /// The cgroup.
    #[error("freeze the restored tree")]
    Cgroup(#[from] floe_cgroup::CgroupError),
    /// The vDSO.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// The new sandbox's monitor.
    #[error("hand waiting input to the monitor")]
    Input(#[source] AttachError),
    /// A system call of floe's own.
    #[error("{action}")]
    System {
        /// What was attempted.
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The caller's last word.
    #[error("take up the restored tree")]
    TakeUp(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It is to be held frozen, and has no cgroup.
    #[error("a sandbox without a cgroup of its own can't be held frozen until it is decided whether it counts")]
    NoCgroup,
    /// The image contradicts itself.
    #[error("the image is not consistent: {0}")]
    Inconsistent(String),
    /// What was built differs from the image, and where.
    #[error("what was built differs from the image")]
    Differs(Vec<String>),
}

impl RestoreError {
    fn system(action: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let action = action.into();
        move |source| Self::System {
            action,
            source: source.into(),
        }
    }
}

/// What a dry run tells.
#[derive(Debug)]
pub struct DryRun {
    /// The steps.
    pub steps: Vec<Step>,
    /// What stands in the way.
    pub obstacles: Vec<Obstacle>,
}

/// Reads the image, plans, and looks for obstacles, but makes nothing.
///
/// # Errors
/// [`RestoreError`].
pub fn dry_run(
    image: ImageFiles,
    given: (Outside<'_>, Differences, Publish<'_>),
    control: &Control<'_>,
) -> Result<DryRun, RestoreError> {
    dry_run_awaiting(image, given, &BTreeSet::new(), control)
}

/// The same, where files and directories are to come to paths of the tree's root before it is restored.
///
/// # Errors
/// [`RestoreError`].
pub fn dry_run_awaiting(
    image: ImageFiles,
    (outside, differences, publish): (Outside<'_>, Differences, Publish<'_>),
    coming: &BTreeSet<Vec<u8>>,
    control: &Control<'_>,
) -> Result<DryRun, RestoreError> {
    control.enter("open")?;
    let mut image = Image::open(image)?;
    control.enter("plan")?;
    let (_, mut found) = vdso::prepare(&mut image)?;
    let (steps, _) = plan_all(&image)?;
    control.enter("preflight")?;
    let connections = OutsideEnds::of(
        &image,
        (outside.tcp, outside.moves),
        link::way(&image, publish).as_ref(),
    )?;
    found.extend(obstacles(
        &image,
        (&connections, outside, publish),
        (differences, coming),
    )?);
    let obstacles = found;
    Ok(DryRun { steps, obstacles })
}

/// Lets floe's table of descriptors grow to what the image's files can take while this is the only thread: where threads
/// share it, the kernel waits each time until all processors have noticed (synchronize_rcu in expand_fdtable), some 4 ms.
fn make_room_for_files(image: &Image, any: BorrowedFd<'_>) {
    // Enough for what is open besides.
    const OTHERS: usize = 512;
    let number = i32::try_from(image.open_files().len() + OTHERS).unwrap_or(i32::MAX);
    match fcntl(any, FcntlArg::F_DUPFD_CLOEXEC(number)) {
        Ok(number) => drop(descriptor::adopt(number)),
        // A lower limit on open files: it takes longer then.
        Err(error) => tracing::debug!(%error, "no room for files ahead"),
    }
}

/// The steps, and what processes hold for others while they fork.
fn plan_all(image: &Image) -> Result<(Vec<Step>, HashMap<i32, Lending>), PlanError> {
    let processes = image.processes();
    let numbering = Numbering::of(image);
    let known = (image.sandbox().has_init, &numbering);
    let steps = plan(processes, known, &BTreeSet::new())?;
    // Nobody is there to lend to; and a change of memory that one lends would be seen by all that have the same.
    let is_alone = image.address_spaces().len() < 2;
    if is_alone
        || processes
            .iter()
            .any(|process| process.shared & libc::CLONE_VM as u32 != 0)
    {
        return Ok((steps, HashMap::new()));
    }
    let memory = Memory::of(image);
    let wants = Wants::find(&memory, &steps);
    let early = wants.early();
    if early.is_empty() {
        return Ok((steps, HashMap::new()));
    }
    // Not every order is possible.
    let Ok(steps) = plan(processes, known, &early) else {
        return Ok((steps, HashMap::new()));
    };
    let lendings = wants.lendings(&memory, &steps);
    Ok((steps, lendings))
}

/// Brings a tree back.
///
/// # Errors
/// [`RestoreError`]; nothing is left behind then.
pub fn restore(request: Request<'_>, control: &Control<'_>) -> Result<Report, RestoreError> {
    control.enter("open")?;
    let mut image = Image::open(request.image)?;
    control.enter("plan")?;
    let (bridge, mut found) = vdso::prepare(&mut image)?;
    let (steps, lendings) = plan_all(&image)?;
    let (later, not_later) = if request.lazy {
        lazy::choose(&image)
    } else {
        Default::default()
    };
    control.enter("preflight")?;
    let outside = request.outside;
    let publish = request.publish.as_deref();
    let connections = OutsideEnds::of(
        &image,
        (outside.tcp, outside.moves),
        link::way(&image, publish).as_ref(),
    )?;
    found.extend(obstacles(
        &image,
        (&connections, outside, publish),
        (request.differences, &BTreeSet::new()),
    )?);
    if !found.is_empty() {
        return Err(RestoreError::Obstacles(found));
    }
    control.enter("launch")?;
    let started = Instant::now();
    let hierarchies = cgroups::hierarchies(&image)?;
    let plan = CgroupPlan::new(&image.sandbox().cgroups, &hierarchies);
    let spec = SandboxSpec {
        controllers: plan.controllers(),
        link: link::spec(&image, publish),
        processor: processor::state(&image),
        ..sandbox_spec(&image, request.name, request.foreground)
    };
    let (near, far) = Channel::pair().map_err(RestoreError::system("make the channel to the tasks"))?;
    let executable = Puppet::seed_program().map_err(|source| RestoreError::System {
        action: "make the seed program".to_owned(),
        source,
    })?;
    let first = First::Seed {
        executable,
        keep: vec![far.as_raw_fd()],
    };
    // Before there is a way to the tree, on which nobody answers yet.
    let held_here = connections.hold_here()?;
    let launch = Launch::begin(request.state_dir, &spec, first)?;
    if request.hold.is_some() && launch.cgroup().is_none() {
        return Err(RestoreError::NoCgroup);
    }
    let seized = Puppet::expect_seed(launch.pid1())?;
    let console = console_ends(launch.pid1())?;
    control.enter("seed")?;
    launch.exec()?;
    let seed = seized.stop_at_exec()?;
    let groups = cgroups::make((&image, &plan, &hierarchies), &launch)?;
    let mut world = World::start(seed, &image, near, far.as_raw_fd(), request.pid_method)?;
    drop(far);
    world.later = Some(&later);
    world.bridge = Some(&bridge);
    world.cgroups = Some(&groups);
    world.restore_login(image.sandbox().login)?;
    world.namespaces = Namespaces::make(&image, launch.pid1(), &|places| {
        groups.entrances(launch.cgroups(), places)
    })?;
    let views = cgroups::views(&image, &groups, launch.cgroups())?;
    groups.open_up()?;
    world.settle_in(1)?;
    let base = SeedState::read(world.seed()?, processor::components(&image)).map_err(|e| task_error(1, e))?;
    world.base = base.users();
    control.enter("mounts")?;
    let known = &world.namespaces.known;
    let (roots, unmounted) = mounts::make(&image, launch.pid1(), (outside.mounts, known, &views))?;
    control.enter("network")?;
    let mut networks = Networks::of(&image, launch.pid1(), outside.ends)?;
    let spaces = networks.spaces(&world.namespaces)?;
    let space = |number| {
        spaces
            .get(&number)
            .cloned()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    let held_within = connections.hold_within(&space)?;
    networks.make(&world.namespaces)?;
    control.enter("contents")?;
    console::restore_log(&image, launch.folder())?;
    let made = MadeContents::make(&image, &mut world, &roots)?;
    control.enter("tree")?;
    make_room_for_files(&image, roots.own());
    let complete = std::thread::scope(|scope| {
        let original = Original::new(&image, &made, &roots)?;
        let (sender, finished) = mpsc::channel();
        let comparison = scope.spawn(move || original.compare(&finished));
        let one = OneProcessor::stay().map_err(RestoreError::system("stay on one processor"))?;
        if let Err(error) = one.bring(launch.pid1()) {
            tracing::debug!(%error, "the tasks may not run where floe does");
        }
        let shared = clocks::must_come_early(&image);
        if shared {
            clocks::set(&image, &mut world)?;
        }
        let terminals = MadeTerminals::make(&image, roots.own(), &console[0])?;
        world.grow(&steps, lendings, (&made, &terminals), &roots, control)?;
        cgroups::place_all(&image, &world)?;
        world.make_ended_pids(&image.sandbox().pid_namespaces)?;
        let mut unmounted = unmounted;
        if let Some(mounting) = &mut unmounted {
            mounts::complete(mounting, &world, launch.pid1())?;
        }
        control.enter("files")?;
        let stash = Stash::new(image.descriptor_tables(), world.own_numbers());
        let all = (&image, &stash);
        let mut opened = files::open_all(all, &world, (&made, terminals), &console, (&roots, outside))?;
        made.finish(&image, &world.namespaces)?;
        networks.finish(&world.namespaces)?;
        world.adjust_early(image.sandbox())?;
        console::restore_input(&image, launch.folder())?;
        control.enter("clocks")?;
        if !shared {
            clocks::set(&image, &mut world)?;
        }
        clocks::set_others(&image, &mut world)?;
        if let Some(mounting) = unmounted {
            mounts::finish(mounting, &world, launch.pid1())?;
        }
        control.enter("state")?;
        world.keep_children_home(image.processes())?;
        let crowd = state::make_threads(&image, &mut world)?;
        world.adjust_late(image.sandbox(), &crowd)?;
        world.settle_pids_of_children(image.processes())?;
        let everybody = cgroups::place_threads(&groups, image.processes(), &crowd.host_ids(), &world)?;
        files::open_late(all, &world, &made, &console, (&roots, outside))?;
        let unsent = (&mut opened.unsent, &stash);
        files::connect_all(&image, &world, &roots, &crowd.host_ids(), unsent)?;
        world.set_sysctls(&image.sandbox().sysctls)?;
        let looked_after = LookedAfter::begin(&image, &world, &later)?;
        let threads = state::complete(&image, &mut world, crowd, &base, &sender)?;
        drop(sender);
        drop(one);
        control.enter("freeze")?;
        // Whatever fails from here on, the tasks are frozen, or stopped without a cgroup, until they are ended.
        let mut stopped = threads;
        if let Some(cgroup) = launch.cgroup() {
            cgroup.freeze()?.keep();
            for thread in stopped.drain(..) {
                thread.detach()?;
            }
        }
        networks.filter(&world.namespaces)?;
        groups.set()?;
        groups.freeze()?;
        control.enter("verify")?;
        let compared = comparison
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let mut differences = compared?;
        let hosts = world.host_pids();
        verify::relations(&image, &hosts, &mut differences)?;
        differences.extend(mounts::compare(
            &image,
            (&roots, &world.namespaces.known),
            (&hosts, launch.pid1()),
        )?);
        differences.extend(networks.compare(&world.namespaces)?);
        differences.extend(groups.differences(&everybody)?);
        differences.into_result()?;
        files::refresh_views(&image, &hosts)?;
        Ok::<_, RestoreError>((opened, stopped, looked_after))
    })?;
    let (opened, stopped, looked_after) = complete;
    control.enter("thaw")?;
    (request.before_thaw)(&launch).map_err(RestoreError::TakeUp)?;
    let name = launch.name().to_owned();
    let mut postponed = looked_after.hand_over(&image, &launch)?;
    postponed.not = postponed.not.or(not_later);
    let is_seen_outside = networks.have_ends() || connections.are_there();
    let mut keep = networks.descriptors(&world.namespaces)?;
    keep.extend(
        spaces
            .values()
            .filter_map(NetworkSpace::descriptor)
            .map(|file| file.as_raw_fd()),
    );
    keep.extend(opened.outside.iter().map(|(_, socket)| socket.as_raw_fd()));
    let held = [held_here, held_within];
    keep.extend(
        held.iter()
            .flatten()
            .flat_map(Held::descriptors)
            .map(|hold| hold.as_raw_fd()),
    );
    let join = || networks.join(&world.namespaces);
    let go_on = || connections.go_on(held, &opened.outside, &space);
    match request.hold {
        // The tree that it was made of is there still, and has the same addresses.
        Some(_) if is_seen_outside => launch.when_let_run(&keep, || {
            // In repair mode a connection is of no use, whatever became of the devices.
            let (joined, gone_on) = (join(), go_on());
            joined.map_err(|error| lazy::chain(&error))?;
            gone_on.map_err(|error| lazy::chain(&error))
        })?,
        _ => {
            join()?;
            go_on()?;
        }
    }
    // From now on the end of floe is not theirs.
    let outliving = stopped.into_iter().map(Stopped::outlive_tracer);
    let outliving = outliving.collect::<Result<Vec<_>, _>>()?;
    match request.hold {
        Some(holding) => launch.commit_held(holding, &held_names(&opened.names)?)?,
        None => launch.commit_frozen()?,
    }
    opened.names.keep();
    outside.grants.keep();
    for thread in outliving {
        thread.let_go()?;
    }
    let (processes, memory) = (image.processes().len(), world.written());
    Ok(Report {
        name,
        has_terminal: matches!(spec.console, Console::Terminal { .. }),
        processes,
        memory,
        postponed,
        elapsed: started.elapsed(),
    })
}

fn held_names(names: &BoundNames) -> Result<Vec<HeldName>, RestoreError> {
    let places = names.places()?.into_iter();
    Ok(places.map(|(path, identity)| HeldName { path, identity }).collect())
}

fn task_error(tid: i32, source: TaskError) -> RestoreError {
    RestoreError::Task {
        tid,
        source: Box::new(source),
    }
}

fn sandbox_spec(image: &Image, name: Option<String>, foreground: bool) -> SandboxSpec {
    let record = image.sandbox();
    let origin = |origin: NamespaceOrigin| match origin {
        NamespaceOrigin::Host => Origin::Host,
        NamespaceOrigin::Own => Origin::Own,
    };
    let console = match &record.console {
        ConsoleRecord::Terminal(terminal) => Console::Terminal {
            window: WindowSize { words: terminal.window },
            index: terminal.index,
        },
        ConsoleRecord::Pipes { stdin: Some(_) } => Console::Pipes { stdin: true },
        ConsoleRecord::None | ConsoleRecord::Pipes { stdin: None } => Console::Pipes { stdin: foreground },
    };
    let (uts, hostname, domainname) = &record.uts;
    SandboxSpec {
        name: name.or_else(|| (!record.name.is_empty()).then(|| record.name.clone())),
        command: record.command.iter().map(Into::into).collect(),
        hostname: (*uts == NamespaceOrigin::Own).then(|| hostname.clone()),
        domainname: (*uts == NamespaceOrigin::Own).then(|| domainname.clone()),
        uts: origin(*uts),
        ipc: origin(record.ipc),
        net: origin(record.net),
        cgroup: origin(record.cgroup),
        // A private /proc needs a mount namespace, also for a tree that had none.
        mount: Origin::Own,
        // Numbers of the tree's terminals may be taken in the host's.
        devpts: match has_terminals(image.objects()) {
            true => Origin::Own,
            false => origin(record.devpts),
        },
        console,
        remove: foreground,
        ..SandboxSpec::default()
    }
}

/// The workload's side of the new sandbox's streams, which PID 1 has at 0, 1 and 2.
fn console_ends(pid1: Pid) -> Result<[OwnedFd; 3], RestoreError> {
    let pidfd = descriptor::pidfd_open(pid1).map_err(RestoreError::system("open a pidfd of PID 1"))?;
    let fetch = |number| {
        descriptor::pidfd_getfd(pidfd.as_fd(), number).map_err(RestoreError::system("fetch a stream of PID 1"))
    };
    Ok([fetch(0)?, fetch(1)?, fetch(2)?])
}
