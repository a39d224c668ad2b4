//! `floe run`.

use super::{
    cpu::For,
    foreground::Stay,
    limits::LimitArguments,
    map::Map,
    mounts::MountArguments,
    publish::{all_different, published},
};
use crate::{
    Context,
    failure::{Failure, Outcome},
    output,
};
use clap::{
    Args, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser},
};
use floe_sandbox::{
    Client, Console, First, Launch, LinkSpec, Origin, Published, RunAs, SandboxSpec, Signals, WindowSize, become_root,
};
use floe_sys::descriptor;
use std::{ffi::OsString, os::unix::ffi::OsStrExt};

/// Start a command in a new sandbox: PID, mount, UTS, IPC and cgroup namespaces of its own, its own cgroup, a private
/// /proc.
///
/// The command is PID 1: the kernel ends every other task of the namespace when it ends, and drops signals that it has no
/// handler for, but SIGKILL and SIGSTOP from outside. With --init it runs below a small init that reaps orphans and hands signals
/// on. In the foreground its exit status is handed on (128 + N for signal N; 125 floe failed, 126 not executable, 127 not
/// found).
///
/// Example: floe run -d --name job -- python3 worker.py
///
/// Example: floe run -t --rootfs /srv/debian -v /srv/data:/data:ro --tmpfs /run -- bash
#[derive(Debug, Args)]
pub struct Run {
    /// Leave it running in the background and print its name.
    #[arg(short, long)]
    detach: bool,
    /// Give it a pseudo-terminal.
    #[arg(short, long, conflicts_with = "map_user")]
    tty: bool,
    /// Its name; one is made up otherwise.
    #[arg(long)]
    name: Option<String>,
    /// Set an environment variable on top of this environment, all of which is handed on.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable())]
    env: Vec<OsString>,
    /// Working directory [default: this one, with --rootfs its root].
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<OsString>,
    /// Host name in the sandbox [default: its name].
    #[arg(long)]
    hostname: Option<String>,
    /// Run the command below a small init.
    #[arg(long)]
    init: bool,
    /// Run the command as this user, with all groups of theirs, or with one that is given: `UID[:GID]` or `NAME[:GROUP]`, by
    /// /etc/passwd and /etc/group. HOME, USER and LOGNAME are theirs.
    #[arg(long, value_name = "USER[:GROUP]", conflicts_with = "map_user")]
    user: Option<RunAs>,
    /// Run the command so many PID namespaces deep, each in the one before. It is PID 1 of the innermost, whose processes
    /// /proc shows; each above has a small init. The kernel nests 32 at most, with those that floe is in.
    #[arg(
        long,
        value_name = "LEVELS",
        default_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=32),
    )]
    pid_depth: u32,
    #[command(flatten)]
    map: Map,
    /// Its network.
    #[arg(long, value_enum, default_value = "host")]
    net: Net,
    /// A port of the host that is one of the sandbox, with --net new: HOSTPORT:PORT, of TCP, or with /udp behind it of UDP. May be
    /// given several times. Of those below 1024 an ordinary user may have none.
    #[arg(short, long, value_name = "HOSTPORT:PORT[/udp]", value_parser = published)]
    publish: Vec<Published>,
    #[command(flatten)]
    mounts: MountArguments,
    /// For which processors the command is started, so that the sandbox can go to hosts with lesser ones than this: glibc, and
    /// libraries that come in several builds (glibc-hwcaps), choose what all of these can do. Programs that ask the processor
    /// themselves are not held to it (docs/moving-between-processors.md says which, and what to do about them).
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "host")]
    cpu: For,
    #[command(flatten)]
    limits: LimitArguments,
    /// The command.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Net {
    /// The host's.
    Host,
    /// One of its own, with loopback alone.
    None,
    /// One of its own, joined to the host's by a pair of devices with addresses of 10.241.0.0/16: eth0 inside. Others are
    /// reached where the host forwards (net.ipv4.ip_forward), else the host alone. Names are looked up as the sandbox's
    /// /etc/resolv.conf says, which is the host's and must name a server that is not on its loopback. For an ordinary user pasta
    /// (package passt) is between, or slirp4netns where that alone is installed: they reach others as the host does, and the
    /// host by its addresses but those of loopback.
    New,
}

/// Parses a variable and its value.
pub fn variable() -> impl TypedValueParser<Value = OsString> {
    OsStringValueParser::new().try_map(|text| {
        let split = text.as_bytes().iter().position(|byte| *byte == b'=');
        match split {
            Some(1..) => Ok(text),
            Some(0) | None => Err("give it as NAME=VALUE; the environment is handed on in any case"),
        }
    })
}

/// The caller's environment with changes.
pub fn environment(changes: &[OsString]) -> Vec<OsString> {
    let mut all: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    for change in changes {
        let bytes = change.as_bytes();
        if let Some(at) = bytes.iter().position(|byte| *byte == b'=') {
            let (name, value) = (
                std::ffi::OsStr::from_bytes(&bytes[..at]),
                std::ffi::OsStr::from_bytes(&bytes[at + 1..]),
            );
            all.retain(|(known, _)| known != name);
            all.push((name.to_owned(), value.to_owned()));
        }
    }
    all.into_iter()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        })
        .collect()
}

impl Run {
    /// The caller's with changes; of another user than that what is not told of the caller.
    fn environment(&self) -> Vec<OsString> {
        let mut all = environment(&self.env);
        if self.user.is_some() {
            let name = |variable: &OsString| {
                variable
                    .as_bytes()
                    .split(|byte| *byte == b'=')
                    .next()
                    .map(<[u8]>::to_vec)
            };
            let given: Vec<_> = self.env.iter().map(name).collect();
            let theirs = [&b"HOME"[..], b"USER", b"LOGNAME"].map(|name| Some(name.to_vec()));
            all.retain(|variable| !theirs.contains(&name(variable)) || given.contains(&name(variable)));
        }
        all
    }

    fn spec(&self) -> anyhow::Result<SandboxSpec> {
        anyhow::ensure!(
            self.publish.is_empty() || self.net == Net::New,
            "ports are published with --net new alone"
        );
        all_different(&self.publish)?;
        let console = if self.tty {
            let window = WindowSize::read(0).unwrap_or(WindowSize::new(24, 80));
            Console::Terminal { window, index: 0 }
        } else {
            Console::Pipes { stdin: !self.detach }
        };
        Ok(SandboxSpec {
            name: self.name.clone(),
            command: self.command.clone(),
            env: self.environment(),
            workdir: self
                .workdir
                .clone()
                .or_else(|| self.mounts.has_root().then(|| "/".into()))
                .or_else(|| std::env::current_dir().ok().map(Into::into)),
            hostname: self.hostname.clone(),
            net: match self.net {
                Net::Host => Origin::Host,
                Net::None | Net::New => Origin::Own,
            },
            link: (self.net == Net::New).then(|| LinkSpec {
                published: self.publish.clone(),
                address: None,
            }),
            mounts: self.mounts.mounts()?,
            run_as: self.user.clone(),
            pid_depth: self.pid_depth,
            init: self.init,
            processor: self.cpu.state()?,
            limits: self.limits.limits()?,
            console,
            remove: !self.detach,
            ..SandboxSpec::default()
        })
    }

    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let failed = |error: floe_sandbox::LaunchError| {
            let status = error.exit_status();
            Failure::with_status(error, status)
        };
        let spec = self.spec().map_err(|error| Failure::with_status(error, 125))?;
        become_root(self.map.ids()).map_err(|error| Failure::with_status(error, 125))?;
        let launch = Launch::begin(&context.state_dir, &spec, First::Command).map_err(failed)?;
        let name = launch.name().to_owned();
        if launch.state().link.as_ref().is_some_and(|link| !link.forwarded) {
            context.tell("this host forwards nothing (net.ipv4.ip_forward is 0): the sandbox reaches the host alone");
        }
        if self.detach {
            launch.exec().map_err(failed)?;
            launch.commit().map_err(failed)?;
            output::line(&name);
            return Ok(0);
        }
        let lost = |error| Failure::with_status(anyhow::Error::new(error), 125);
        let mut client = Client::connect(launch.folder()).map_err(lost)?;
        client.subscribe().map_err(lost)?;
        let system = |error| Failure::with_status(anyhow::Error::new(error), 125);
        let stay = Stay {
            client,
            signals: Signals::take().map_err(system)?,
            pid1: Some(descriptor::pidfd_open(launch.pid1()).map_err(system)?),
            terminal: self.tty,
            owner: true,
            name: &name,
        };
        launch.exec().map_err(failed)?;
        launch.commit().map_err(failed)?;
        stay.until_end(context)
    }
}
