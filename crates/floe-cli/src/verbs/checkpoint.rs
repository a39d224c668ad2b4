//! `floe checkpoint`.

use super::{
    image_file::{self, Bases},
    tcp::Tcp,
    tty::Tty,
};
use crate::{
    Context, act,
    behalf::{self, Behalf},
    failure::Outcome,
    front, output,
};
use anyhow::Context as _;
use clap::{ArgGroup, Args};
use floe_cgroup::Cgroup;
use floe_checkpoint::checkpoint::{
    Output, Report, Request, Target, Then, checkpoint, confines_calls, stages, terminal_of,
};
use floe_image::{Image, ImageFiles, MAX_BASES, record::OwnerRecord};
use floe_resources::{
    file::{ConsoleLinks, Externals, Rule},
    mm::Base,
};
use floe_sandbox::{Announcement, Found, Owner, Sandbox, join_user};
use floe_sys::Pid;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Save a sandbox, or any process tree, into one file; the tree then ends.
///
/// The tree is frozen, everything about it is read, and whatever can't be carried is told in one list; then nothing has
/// happened. Otherwise the image is written, synced, and appears under its name complete. An error at any point leaves
/// the tree running on.
///
/// Root saves a tree in an ordinary user's user namespace as that user would, and may keep the image where that user reads nothing.
/// An image on its way to standard output is in a temporary file until it is complete.
///
/// Example: floe checkpoint job -o job.floe
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("running-on").multiple(true).args(["leave_running", "background"]))]
#[command(group = ArgGroup::new("target").required(true).args(["name", "pid", "cgroup", "stages"]))]
pub struct Checkpoint {
    /// The sandbox.
    name: Option<String>,
    /// A tree that floe did not start, by the PID of its root: unshare, bubblewrap, a shell.
    #[arg(long)]
    pid: Option<i32>,
    /// All of a cgroup: the tree below the one process in it whose parent is outside.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// The image to write; - for standard output. Nothing is written with --dry-run.
    #[arg(short, long, value_name = "FILE", required_unless_present_any = ["dry_run", "stages"])]
    output: Option<PathBuf>,
    /// Save only what changed since this image was made, of the same tree or of one that was restored from it; memory is
    /// compared with it, but for what is known by --track. The new image is based on that: it takes it, under the same name beside it or by --base, to be restored or
    /// to be read, and so on (floe image merge makes one image of them).
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Let the tree run on.
    #[arg(long)]
    leave_running: bool,
    /// Let the tree run on as soon as all but its memory is saved. The image is of one instant all the same: each process with
    /// much memory forks a copy that never runs, so there is one more process of each meanwhile, and what is written
    /// meanwhile takes memory twice. Shared memory is saved first.
    #[arg(long, conflicts_with = "dry_run")]
    background: bool,
    /// Follow from now on what the sandbox writes to its memory: the next checkpoint on the base of this image (--base) needs to
    /// read only that, and not to compare all of it. Each page takes a microsecond more when it is first written, and huge
    /// pages that are written come apart. Ends with the sandbox's monitor, with another image with --track, and where memory is mapped anew:
    /// that stays a mapping of its own beside what is followed, and mremap(2) over both fails (EFAULT).
    #[arg(long, requires = "running-on", conflicts_with_all = ["pid", "cgroup", "dry_run"])]
    track: bool,
    /// TCP connections with processes outside of the tree.
    #[arg(long, value_enum, value_name = "HOW", default_value = "refuse")]
    tcp: Tcp,
    /// How long to wait for what passes by itself (connections not accepted yet or only being made, events not read yet):
    /// the tree runs on meanwhile, and is stopped and looked at anew.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = super::seconds)]
    patience: Duration,
    /// For a tree that was started by hand in a terminal: that counts as its own, and the restored tree has one like it, which
    /// who stays with the sandbox has on their own terminal.
    #[arg(long, value_enum, value_name = "WHICH", conflicts_with = "name")]
    tty: Option<Tty>,
    /// What stays outside of the tree; may be given several times. unix:PATH or unix:@NAME: unix sockets that are connected
    /// with one of this name connect with it anew when the tree is restored. LINK=NAME: a pipe, socket, terminal, device or
    /// file, by its link in /proc/PID/fd as findings tell it (for a device e.g. /dev/ttyS0): restore --inherit-fd NAME=FD
    /// gives another one in its place.
    #[arg(long, value_name = "RULE")]
    external: Vec<Rule>,
    /// Only tell what stands in the way.
    #[arg(long)]
    dry_run: bool,
    /// zstd level, from -7 (fast) to 22 (small).
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-7..=22))]
    level: i32,
    /// Print the names of the stages, at each of which a failure undoes everything.
    #[arg(long)]
    stages: bool,
}

impl Checkpoint {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        if self.stages {
            let stages = stages(self.then(), self.track);
            stages.iter().for_each(|stage| output::line(stage));
            return Ok(0);
        }
        let is_root = behalf::is_host_root()?;
        let sandbox = match &self.name {
            Some(name) if is_root => match Sandbox::open_as_root(&context.state_dir, name)? {
                Found::Own(sandbox) => Some(*sandbox),
                Found::Of(owner) => return self.behalf_of(owner)?.perform(),
            },
            Some(name) => Some(Sandbox::open(&context.state_dir, name)?),
            None => None,
        };
        if let Some(pid) = self.pid
            && !std::path::Path::new(&format!("/proc/{pid}")).exists()
        {
            return Err(anyhow::anyhow!("there is no process {pid}").into());
        }
        if let (true, Some(pid)) = (is_root, self.pid)
            && let Some(owner) = Owner::of_process(Pid::new(pid))?
        {
            return self.behalf_of(owner)?.perform();
        }
        let entered = match (&sandbox, self.pid) {
            (Some(sandbox), _) => {
                sandbox.refuse_held()?;
                // Of memory that is still to come nothing but its image is known.
                sandbox.await_memory()?;
                sandbox.join_user()?
            }
            (None, Some(pid)) => join_user(Pid::new(pid))?,
            (None, None) => None,
        };
        let entered = entered.as_ref().map(behalf::record);
        let target = self.target(sandbox.as_ref())?;
        // Who has copies of a tree's memory, or a descriptor open in it, has to clear them away.
        if self.background || self.track || confines_calls(&target)? {
            front::stand(context.log_format, || {
                self.save(context, sandbox.as_ref(), (target, entered), true)
            })
        } else {
            self.save(context, sandbox.as_ref(), (target, entered), false)
        }
    }

    fn behalf_of(&self, owner: Owner) -> anyhow::Result<Behalf> {
        let output = if self.dry_run {
            None
        } else {
            Some(self.output()?.open()?)
        };
        let image = self.base.as_deref().map(|base| self.base_files(base)).transpose()?;
        if let Some(image) = &image {
            let is_theirs = (image.owner()?).is_some_and(|record| record.namespace.maker.0 == owner.user);
            anyhow::ensure!(is_theirs, "--base: the image is of no tree of user {}'s", owner.user);
            behalf::refuse_others_bases(image, owner.user)?;
        }
        Ok(Behalf {
            owner,
            image,
            output,
            space: None,
            inherited: Vec::new(),
        })
    }

    fn save(
        &self,
        context: &Context,
        sandbox: Option<&Sandbox>,
        (target, owner): (Target, Option<OwnerRecord>),
        behind_front: bool,
    ) -> Outcome {
        let mut announcement: Option<Announcement> = None;
        let mut before_end = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            if let Some(sandbox) = sandbox {
                announcement = Some(sandbox.announce_checkpoint()?);
            }
            Ok(())
        };
        let _lock = match sandbox {
            Some(sandbox) => Some(sandbox.lock()?),
            None => target.cgroup().map(Cgroup::lock).transpose()?,
        };
        let request = Request {
            target,
            owner,
            output: if self.dry_run {
                None
            } else {
                Some(self.output_of(context)?)
            },
            level: self.level.into(),
            base: self.base(context)?,
            then: self.then(),
            track: self.track,
            tcp: self.tcp.into(),
            patience: self.patience,
            external: Externals::new(self.external.clone())?,
            behind_front,
            before_end: &mut before_end,
        };
        let report = act::perform(|control| checkpoint(request, control))??;
        if let Some(announcement) = announcement {
            announcement.wait_gone()?;
        }
        context.tell(&summary(&report, self.dry_run));
        for note in &report.not_copied {
            context.tell(&format!("saved while it stood still: {note}"));
        }
        for note in &report.not_followed {
            context.tell(&format!("not followed: {note}"));
        }
        Ok(0)
    }

    fn then(&self) -> Then {
        match (self.background, self.leave_running) {
            (true, _) => Then::RunOnMeanwhile,
            (false, true) => Then::RunOn,
            (false, false) => Then::End,
        }
    }

    fn output_of(&self, context: &Context) -> anyhow::Result<Output> {
        let handed = context.handed.as_ref().map(|handed| handed.output()).transpose()?;
        handed.flatten().map_or_else(|| self.output(), Ok)
    }

    fn output(&self) -> anyhow::Result<Output> {
        image_file::output(self.output.as_deref().context("name the image with --output")?)
    }

    /// The image that the new one is to be based on.
    fn base(&self, context: &Context) -> anyhow::Result<Option<Base>> {
        let Some(path) = &self.base else { return Ok(None) };
        let files = match &context.handed {
            Some(handed) => handed.image()?,
            None => self.base_files(path)?,
        };
        let image = Image::open(files)?;
        anyhow::ensure!(
            image.bases() < MAX_BASES,
            "{} is based on {MAX_BASES} images, one on the other, which is the most; make one of them by floe image merge",
            path.display()
        );
        let name = path.file_name().context("name the base by its file")?;
        Ok(Some(Base::new(image, name)))
    }

    fn base_files(&self, path: &Path) -> anyhow::Result<ImageFiles> {
        let files = image_file::open(path, &Bases::default())?;
        if let Some(output) = &self.output
            && let Ok(there) = std::fs::metadata(output)
        {
            anyhow::ensure!(
                !files.include(&there)?,
                "{} is an image that the new one would be based on; give that another name",
                output.display()
            );
        }
        Ok(files)
    }

    fn target(&self, sandbox: Option<&Sandbox>) -> anyhow::Result<Target> {
        if let Some(sandbox) = sandbox {
            return Ok(Target::of_sandbox(sandbox)?);
        }
        if let Some(path) = &self.cgroup {
            let cgroup = Cgroup::open(path)?;
            let root = root_of(&cgroup)?;
            return Ok(Target::Tree {
                root,
                cgroup: Some(cgroup),
                links: self.links(root)?,
            });
        }
        let root = Pid::new(self.pid.context("name a sandbox, --pid or --cgroup")?);
        Ok(Target::Tree {
            root,
            cgroup: None,
            links: self.links(root)?,
        })
    }

    fn links(&self, root: Pid) -> anyhow::Result<ConsoleLinks> {
        match self.tty {
            Some(Tty::Current) => Ok(terminal_of(root)?),
            None => Ok(ConsoleLinks::default()),
        }
    }
}

/// The one process of a cgroup whose parent is not in it.
fn root_of(cgroup: &Cgroup) -> anyhow::Result<Pid> {
    let members = cgroup.processes()?;
    let mut roots = Vec::new();
    for pid in &members {
        let parent = match floe_sys::procfs::Stat::of(*pid) {
            Ok(stat) => Pid::new(stat.ppid),
            Err(error) if error.is_gone() => continue,
            Err(error) => return Err(error.into()),
        };
        if !members.contains(&parent) {
            roots.push(*pid);
        }
    }
    match roots[..] {
        [root] => Ok(root),
        [] => anyhow::bail!("cgroup {} holds no process", cgroup.path().display()),
        _ => anyhow::bail!(
            "cgroup {} holds {} trees; name one by --pid",
            cgroup.path().display(),
            roots.len()
        ),
    }
}

fn summary(report: &Report, dry_run: bool) -> String {
    let what = format!(
        "{}, {}, {} of memory",
        output::count(report.processes, "process", "processes"),
        output::count(report.threads, "thread", "threads"),
        output::bytes(report.memory)
    );
    let frozen = format!("{:.1} ms", report.frozen.as_secs_f64() * 1e3);
    match (&report.image, dry_run) {
        (Some(image), _) => format!("{what}; image {}; stood still {frozen}", output::bytes(image.bytes)),
        (None, _) => format!("nothing stands in the way: {what}; stood still {frozen}"),
    }
}
