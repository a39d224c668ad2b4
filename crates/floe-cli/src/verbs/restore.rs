//! `floe restore`.

use super::{
    cpu::Lesser,
    foreground::Stay,
    image_file::{self, Bases},
    map::Map,
    owner::OwnerOption,
    publish::{all_different, published},
    tcp::Tcp,
    tty::Tty,
};
use crate::{
    Context, act,
    behalf::{self, Behalf},
    failure::{Failure, Outcome},
    output,
};
use anyhow::Context as _;
use clap::{ArgGroup, Args, ValueEnum};
use floe_checkpoint::restore::{self, FilesMode, PidMethod, Report, Request, STAGES};
use floe_image::ImageFiles;
use floe_resources::{
    file::{Grants, Outside, Rule, RuleError},
    ns::{
        mounts::{Given, given_mount},
        network::{GivenEnd, GivenEnds},
    },
};
use floe_sandbox::{Client, IdMap, Launch, Owner, Published, Signals, UserSpace, become_root};
use floe_sys::descriptor;
use std::{
    io::{IsTerminal, stdin, stdout},
    os::fd::OwnedFd,
    path::PathBuf,
};

/// Bring a saved tree back in a new sandbox: a fresh PID namespace in which every task has the PID it had.
///
/// What is built is compared with the image before its first instruction runs. An error at any point leaves nothing
/// behind.
///
/// Example: floe restore -d job.floe
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).args(["image", "stages"]))]
pub struct Restore {
    /// The image; - for standard input.
    image: Option<PathBuf>,
    #[command(flatten)]
    bases: Bases,
    /// Leave it running in the background and print its name.
    #[arg(short, long)]
    detach: bool,
    /// Name of the new sandbox [default: the one it had; one is made up for a tree that floe did not start].
    #[arg(long)]
    name: Option<String>,
    /// Only tell what would be done and what stands in the way.
    #[arg(long)]
    dry_run: bool,
    /// TCP connections with processes outside of the tree, if the image has any.
    #[arg(long, value_enum, value_name = "HOW", default_value = "established")]
    tcp: Tcp,
    /// Unix sockets of the image that connect anew with one outside of the tree, at this name: unix:PATH or unix:@NAME. May be
    /// given several times.
    #[arg(long, value_name = "RULE", value_parser = peer)]
    external: Vec<Rule>,
    /// A file for one that stayed outside when the tree was saved (checkpoint --external LINK=NAME): FD is the number of a
    /// descriptor that floe itself has been started with. May be given several times.
    #[arg(long, value_name = "NAME=FD", value_parser = inherited)]
    inherit_fd: Vec<(String, i32)>,
    /// A path of the host for a mount that shows what is not here, or not there any more: NAME is its mount point in the
    /// sandbox, / that of the root directory (run --rootfs). May be given several times.
    #[arg(long, value_name = "NAME=PATH", value_parser = given_mount)]
    mount: Vec<(PathBuf, PathBuf)>,
    /// The other end of a network device DEVICE of the tree, where that was the host's: a new device NAME of this host, a part of
    /// its bridge BRIDGE, with addresses of IPv4. DEVICE is N:DEVICE where several network namespaces of the image have one of
    /// this name (floe inspect). May be given several times.
    #[arg(long, value_name = "DEVICE=NAME[@BRIDGE][,ADDRESS/BITS]")]
    net: Vec<GivenEnd>,
    /// The tree must get the terminal that floe was started on, by one of its own that floe hands on: so it does by itself
    /// where it had one and floe stays with it. With this, what is in the way of it is in the way of the restore.
    #[arg(long, value_enum, value_name = "WHICH", conflicts_with = "detach")]
    tty: Option<Tty>,
    #[command(flatten)]
    map: Map,
    #[command(flatten)]
    owner: OwnerOption,
    /// Of a sandbox that had --net new: ports to be published in the place of all that were, as for `floe run`.
    #[arg(short, long, value_name = "HOSTPORT:PORT[/udp]", value_parser = published)]
    publish: Vec<Published>,
    /// Files on disk that changed since the image was made, which holds no content of files that have a name.
    #[arg(long, value_enum, value_name = "HOW", default_value = "check")]
    files: Files,
    /// A processor that lacks what the tree's programs may use.
    #[arg(long, value_enum, value_name = "HOW", default_value = "check")]
    cpu: Lesser,
    /// How tasks get their PIDs.
    #[arg(long, value_enum, default_value = "ns-last-pid")]
    pid_method: Method,
    /// Let the tree run before its memory is there, which comes as it is used, and all of it soon. The image is read until
    /// then; where it turns out damaged, the sandbox is ended, with a word in its log. As root.
    #[arg(long, conflicts_with = "dry_run")]
    lazy: bool,
    /// Print the names of the stages, at each of which a failure undoes everything.
    #[arg(long)]
    stages: bool,
}

/// How tasks get their PIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Write the number before it to /proc/sys/kernel/ns_last_pid.
    NsLastPid,
    /// clone3 with set_tid.
    SetTid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Files {
    /// Take them as they are.
    Ignore,
    /// Refuse another build of a program or library, another size of a file that is read, and a file that lost what was
    /// written to it.
    Check,
    /// Refuse any difference in size or time of change, and on the same host another file at the path.
    Strict,
}

impl From<Method> for PidMethod {
    fn from(method: Method) -> Self {
        match method {
            Method::NsLastPid => Self::NsLastPid,
            Method::SetTid => Self::SetTid,
        }
    }
}

impl From<Files> for FilesMode {
    fn from(files: Files) -> Self {
        match files {
            Files::Ignore => Self::Ignore,
            Files::Check => Self::Check,
            Files::Strict => Self::Strict,
        }
    }
}

impl Restore {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let Some(path) = self.image.as_deref().filter(|_| !self.stages) else {
            STAGES.iter().for_each(|stage| output::line(stage));
            return Ok(0);
        };
        if self.tty.is_some() && !(stdin().is_terminal() && stdout().is_terminal()) {
            return Err(anyhow::anyhow!("--tty current: standard input and output are no terminal").into());
        }
        let mounts = Given::new(&self.mount)?;
        let ends = GivenEnds::new(self.net.clone())?;
        let image = match &context.handed {
            Some(handed) => handed.image()?,
            None => image_file::open(path, &self.bases)?,
        };
        if let Some((owner, space)) = self.owner.of(context, &image)? {
            return self.behalf_of((owner, space), context, image)?.perform();
        }
        // Before anything else is opened: what is given are numbers of descriptors.
        let grants = Grants::take(self.external.clone(), &self.inherit_fd)?;
        let outside = Outside {
            tcp: self.tcp.into(),
            moves: false,
            grants: &grants,
            mounts: &mounts,
            ends: &ends,
            terminal: self.tty.is_some(),
        };
        match &context.handed {
            Some(handed) => handed.become_root()?,
            None => become_root(self.map.ids_for(&image)?)?,
        }
        let publish = all_different(&self.publish)?;
        if self.dry_run {
            let differences = (self.files.into(), self.cpu.into());
            let found = act::perform(|control| restore::dry_run(image, (outside, differences, publish), control))??;
            return print(found);
        }
        let (report, attached) = self.perform(context, image, (outside, publish))?;
        if let Some(why) = &report.postponed.not {
            context.tell(&format!("memory came at once: {why}"));
        }
        // What was given is the tree's alone.
        drop(grants);
        match attached {
            Some(attached) => stay(context, &report, attached),
            None => {
                tell(context, &report);
                Ok(0)
            }
        }
    }

    fn behalf_of(
        &self,
        (owner, space): (Owner, UserSpace),
        context: &Context,
        image: ImageFiles,
    ) -> anyhow::Result<Behalf> {
        anyhow::ensure!(
            self.map.ids() == IdMap::Root,
            "--map-auto and --map-user are an ordinary user's; root says by --owner whose user namespace it is to be"
        );
        let user = owner.user;
        anyhow::ensure!(
            self.detach || self.dry_run,
            "the tree is user {user}'s, whose programs don't get root's terminal: it runs in the background (-d), and floe attach shows it"
        );
        anyhow::ensure!(
            context.state_dir_is_given || behalf::runtime_of(&owner).is_some(),
            "user {user} has no directory for sandboxes (/run/user/{user}); name one of theirs by --state-dir"
        );
        // Nothing that floe has opened itself, and none of its own streams, which are root's.
        let take = |(name, number): &(String, i32)| {
            anyhow::ensure!(
                *number > 2,
                "--inherit-fd {name}={number}: the tree is user {user}'s, who does not get root's standard streams"
            );
            descriptor::take_inherited(*number).with_context(|| format!("--inherit-fd {name}={number}"))
        };
        Ok(Behalf {
            owner,
            image: Some(image),
            output: None,
            space: Some(space),
            inherited: self.inherit_fd.iter().map(take).collect::<anyhow::Result<_>>()?,
        })
    }

    fn perform(
        &self,
        context: &Context,
        image: ImageFiles,
        (outside, publish): (Outside<'_>, Option<&[Published]>),
    ) -> Result<(Report, Option<Attached>), Failure> {
        let mut attached = None;
        let mut before_thaw = |launch: &Launch| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            if !self.detach {
                let mut client = Client::connect(launch.folder())?;
                client.subscribe()?;
                // From here on signals are the workload's.
                attached = Some((client, Signals::take()?, descriptor::pidfd_open(launch.pid1())?));
            }
            Ok(())
        };
        let request = Request {
            image,
            state_dir: &context.state_dir,
            name: self.name.clone(),
            pid_method: self.pid_method.into(),
            foreground: !self.detach,
            outside,
            differences: (self.files.into(), self.cpu.into()),
            publish: publish.map(<[Published]>::to_vec),
            hold: None,
            lazy: self.lazy,
            before_thaw: &mut before_thaw,
        };
        let report = act::perform(|control| restore::restore(request, control))??;
        Ok((report, attached))
    }
}

/// A connection that has subscribed, what signals are taken with, and PID 1.
type Attached = (Client, Signals, OwnedFd);

fn tell(context: &Context, report: &Report) {
    output::line(&report.name);
    let later = match report.postponed.bytes {
        0 => String::new(),
        bytes => format!(" and {} to come", output::bytes(bytes)),
    };
    context.tell(&format!(
        "{}, {} of memory{later}, in {:.1} ms",
        output::count(report.processes, "process", "processes"),
        output::bytes(report.memory),
        report.elapsed.as_secs_f64() * 1e3
    ));
}

fn stay(context: &Context, report: &Report, (client, signals, pid1): Attached) -> Outcome {
    let stay = Stay {
        client,
        signals,
        pid1: Some(pid1),
        terminal: report.has_terminal,
        owner: true,
        name: &report.name,
    };
    stay.until_end(context)
}

fn peer(text: &str) -> Result<Rule, String> {
    match text.parse() {
        Ok(Rule::Named { .. }) => Err("a file is given by --inherit-fd NAME=FD".to_owned()),
        rule => rule.map_err(|error: RuleError| error.to_string()),
    }
}

fn inherited(text: &str) -> Result<(String, i32), String> {
    let parts = text.split_once('=');
    let given =
        parts.and_then(|(name, number)| Some((name.to_owned(), number.parse().ok().filter(|number| *number >= 0)?)));
    given.ok_or_else(|| format!("{text:?} is not NAME=FD, e.g. log=3"))
}

fn print(found: restore::DryRun) -> Outcome {
    found.steps.iter().for_each(|step| output::line(&step.to_string()));
    if found.obstacles.is_empty() {
        return Ok(0);
    }
    Err(restore::RestoreError::Obstacles(found.obstacles).into())
}
