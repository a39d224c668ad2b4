//! `floe receive`.

use super::{cpu::Lesser, keys::KeysFolder, map::Map, migrate::Files, restore::Method};
use crate::{Context, act, behalf, failure::Outcome, output};
use clap::{ArgGroup, Args};
use floe_checkpoint::restore::FilesMode;
use floe_image::ImageFiles;
use floe_migrate::{
    link::{Address, LinkError, Listener},
    protocol::Decision,
    refusal::Refusal,
    target::{Event, Files as Taken, Request, commit_files, receive, receive_here, settle_files},
};
use floe_resources::ns::{
    mounts::{Given, given_mount},
    network::{GivenEnd, GivenEnds},
};
use floe_sandbox::{Sandbox, Status, become_root};
use std::{
    path::{PathBuf, absolute},
    time::Duration,
};

/// Take sandboxes that floe migrate sends from other hosts, until interrupted.
///
/// Each is built, compared with its image, and held frozen (floe ps: held) until its source has ended it there; then it runs. If
/// the connection breaks just then, or floe is killed on either side, it stays held until its source reaches this command, or a
/// later one, and says what becomes of it. Only if the source is gone for good decide yourself, by --commit or --abort: if it
/// runs on there after all, --commit makes two of it.
///
/// A sandbox whose source sends the last of its memory when it runs here already (floe migrate --lazy) needs this command until all of that
/// has come: told to stop (SIGTERM), it takes no new sandboxes, and ends when none lacks memory. Killed with all of its processes
/// (-9, or by a service manager that has waited long enough), it ends these sandboxes.
///
/// HOST:PORT takes TLS from hosts whose keys are pinned (floe keys); unix:PATH is a socket that you alone can reach.
///
/// Example: floe receive --listen 0.0.0.0:7070
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["listen", "stdio", "commit", "abort"]))]
pub struct Receive {
    /// Where to wait: HOST:PORT or unix:PATH.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<Address>,
    /// Take one on standard input and output, from who has started this (ssh).
    #[arg(long)]
    stdio: bool,
    /// Let a sandbox run that is held, whose source is gone for good.
    #[arg(long, value_name = "NAME")]
    commit: Option<String>,
    /// Remove a sandbox that is held, whose source is gone for good.
    #[arg(long, value_name = "NAME")]
    abort: Option<String>,
    /// Without encryption and keys, at an address of this host's own (127.0.0.1:PORT).
    #[arg(long, requires = "listen")]
    insecure: bool,
    #[command(flatten)]
    keys: KeysFolder,
    /// A processor that lacks what the programs of the sandboxes may use.
    #[arg(long, value_enum, value_name = "HOW", default_value = "check")]
    cpu: Lesser,
    /// Which files sources may have made here. With used those that their sandboxes use, wherever they want them, with any owner and
    /// mode: whoever may is as good as root on this host; nothing that is here is changed. With rootfs the root directories
    /// of their sandboxes, below --roots alone: there they take the places of what is there.
    #[arg(long, value_enum, value_name = "WHICH", default_value = "none")]
    files: Files,
    /// A directory below which there may be root directories of sandboxes that come (--files rootfs): each at the path that it has
    /// at the source, or at that of --mount /=PATH. Nobody else may write to it, or to what is between it and these.
    #[arg(long, value_name = "DIR", required_if_eq("files", "rootfs"))]
    roots: Vec<PathBuf>,
    /// How tasks get their PIDs.
    #[arg(long, value_enum, default_value = "ns-last-pid")]
    pid_method: Method,
    /// A path of this host for a mount of a sandbox, as for floe restore --mount.
    #[arg(long, value_name = "NAME=PATH", value_parser = given_mount)]
    mount: Vec<(PathBuf, PathBuf)>,
    /// An end at this host for a network device of a sandbox whose other end was its host's, as for floe restore --net. It is there
    /// once the sandbox runs here. Not for sandboxes without such a device.
    #[arg(long, value_name = "DEVICE=NAME[@BRIDGE][,ADDRESS/BITS]")]
    net: Vec<GivenEnd>,
    /// How long a source may be silent before the connection counts as broken.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = super::seconds)]
    timeout: Duration,
}

impl Receive {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        if let Some(name) = self.commit.as_ref().or(self.abort.as_ref()) {
            return decide(context, name, self.commit.is_some());
        }
        let keys = match &self.listen {
            Some(Address::Tcp(_)) if !self.insecure => Some(self.keys.open()?),
            _ => None,
        };
        if keys.as_ref().is_some_and(|keys| keys.peers().is_empty()) {
            return Err(LinkError::NoPeers.into());
        }
        let become_user = |image: &ImageFiles| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            behalf::refuse_users(image)?;
            let ids = Map::default().ids_for(image).map_err(|failure| failure.to_string())?;
            Ok(become_root(ids)?)
        };
        let files = match self.files {
            Files::None => Taken::None,
            Files::Used => Taken::Used,
            Files::Rootfs => Taken::Rootfs(self.roots.iter().map(absolute).collect::<Result<_, _>>()?),
        };
        let mounts = Given::new(&self.mount)?;
        let net = GivenEnds::where_they_fit(self.net.clone())?;
        // Standard output may be the connection.
        let tell = |event: &Event<'_>| context.tell(&in_words(event));
        let request = Request {
            state_dir: &context.state_dir,
            keys: keys.as_ref(),
            silence: self.timeout,
            pid_method: self.pid_method.into(),
            files: &files,
            mounts: &mounts,
            net: &net,
            differences: (FilesMode::Check, self.cpu.into()),
            become_user: &become_user,
            tell: &tell,
        };
        let Some(address) = &self.listen else {
            return Ok(act::perform(|control| receive_here(&request, control))??);
        };
        let listener = Listener::bind(address, self.insecure)?;
        context.tell(&format!("receiving at {}", listener.address()));
        act::perform(|control| receive(listener, &request, control))??;
        Ok(0)
    }
}

fn decide(context: &Context, name: &str, counts: bool) -> Outcome {
    let sandbox = Sandbox::open(&context.state_dir, name)?;
    let Some(id) = sandbox
        .state()
        .handover
        .as_ref()
        .filter(|_| sandbox.state().status == Status::Held)
    else {
        return Err(anyhow::anyhow!("sandbox {name} is not held by a migration").into());
    };
    let failed = |refusal: Refusal| anyhow::anyhow!(refusal.reason);
    let decision = if counts {
        commit_files(&context.state_dir, id).map_err(failed)?;
        sandbox.release(id)?;
        Decision::Commit
    } else {
        sandbox.abandon(id)?;
        Decision::Abort
    };
    settle_files(&context.state_dir, id, decision).map_err(failed)?;
    Ok(0)
}

fn in_words(event: &Event<'_>) -> String {
    match event {
        Event::Runs {
            name,
            from,
            counts: Some(counts),
        } => format!(
            "{name} runs, from {from}: {}, {} of memory",
            output::count(counts.processes as usize, "process", "processes"),
            output::bytes(counts.memory)
        ),
        Event::Runs {
            name,
            from,
            counts: None,
        } => format!("the migration {name} from {from} is decided: it runs"),
        Event::GivenUp { from, reason } => format!("nothing came of a migration from {from}: {reason}"),
        Event::Left { from, reason } => format!("something stays of a migration ({from}): {reason}"),
        Event::Held { name, from } => {
            format!("{name} is held: {from} is gone, and has not said whether it runs on here or there")
        }
    }
}
