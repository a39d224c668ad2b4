//! The monitor: parent and reaper of a sandbox's PID 1. It reads the workload's streams, keeps the log, serves attached
//! clients, notes the exit status, and clears up. One thread, one poll loop.

mod care;
mod clients;
mod console;
mod handover;
mod pages;
mod setup;
mod typed;

use crate::{
    first::Program,
    link::Link,
    message::{self, kind},
    mounts::Points,
    spec::SandboxSpec,
    state::{SandboxState, StateDir, Status},
};
use clients::Clients;
pub use clients::SOCKET;
use console::ConsoleEnds;
use floe_cgroup::Cgroups;
use floe_sys::fork;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
};
use setup::Setup;
use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

/// The monitor's whole life, in a child of the launcher; returns its exit status.
pub fn live(state_dir: &StateDir, spec: &SandboxSpec, name: &str, program: &Program, launcher: &OwnedFd) -> i32 {
    // Whoever waits for the end of the launcher's streams must not wait for the monitor.
    let mut keep = vec![launcher.as_raw_fd()];
    if let Program::Seed {
        executable,
        keep: inherited,
    } = program
    {
        keep.push(executable.as_raw_fd());
        keep.extend(inherited);
    }
    fork::close_all_but(&keep);
    floe_sys::descriptor::null_streams();
    fork::leave_session("floe-monitor");
    if let Err(error) = std::env::set_current_dir("/") {
        tracing::debug!(%error, "the monitor stays in its directory");
    }
    match Setup::make(state_dir, spec, name, program, launcher) {
        Ok(setup) => Monitor::new(setup, spec).run(launcher),
        Err((error, text)) => {
            // If the launcher is gone too, nobody is left to be told.
            let _ = message::put(launcher, kind::FAILED, &message::failure(error, &text));
            1
        }
    }
}

/// How PID 1 stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It waits for its exec, or the launcher has not committed yet.
    Launching,
    /// The launcher has committed.
    Running,
    /// It has ended with this status.
    Ended(End),
}

/// How PID 1 ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    /// Its status as a shell tells it.
    status: i32,
    /// Whether a signal ended it.
    by_signal: bool,
}

struct Monitor {
    state: SandboxState,
    folder: PathBuf,
    cgroups: Cgroups,
    /// PID 1.
    pidfd: OwnedFd,
    /// PID 1's socket, until its exec.
    first: Option<OwnedFd>,
    console: ConsoleEnds,
    clients: Clients,
    /// Mount points that were made for it, which go again if it does not come to run.
    points: Points,
    /// Memory that comes while it runs.
    pages: pages::Pages,
    /// The way to who joins it to networks outside when it is let run.
    joiner: Option<OwnedFd>,
    phase: Phase,
    remove: bool,
    /// It was ended because it runs on at another host.
    handed_over: bool,
    /// It goes with this.
    link: Option<Link>,
}

/// What a descriptor that poll reports belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Launcher,
    First,
    Pid1,
    Pages,
    Link,
    Listener,
    Client(usize),
    Stream(usize),
    Input,
}

impl Monitor {
    fn new(setup: Setup, spec: &SandboxSpec) -> Self {
        Self {
            state: setup.state,
            folder: setup.folder,
            cgroups: setup.cgroups,
            pidfd: setup.pidfd,
            first: Some(setup.first),
            console: setup.console,
            clients: setup.clients,
            points: setup.points,
            pages: pages::Pages::default(),
            joiner: None,
            phase: Phase::Launching,
            remove: spec.remove,
            handed_over: false,
            link: setup.link,
        }
    }

    fn run(mut self, launcher: &OwnedFd) -> i32 {
        let mut launcher = Some(launcher);
        // PID 1 was forked with the limit of who called floe.
        if let Err(error) = floe_sys::descriptor::allow_most() {
            tracing::info!(%error, "the monitor has no more open files than the workload may");
        }
        loop {
            if let Phase::Ended(end) = self.phase {
                return self.end(end, launcher);
            }
            for source in self.wait(launcher) {
                match source {
                    Source::Launcher => match launcher.map(|socket| self.launcher(socket)) {
                        Some(Heard::Abandoned) => return self.abandon(),
                        Some(Heard::Committed) => launcher = None,
                        Some(Heard::Other) | None => {}
                    },
                    Source::First => self.first_speaks(launcher),
                    Source::Pid1 => self.reap(),
                    Source::Pages => self.hear_of_pages(),
                    Source::Link => self.join_again(),
                    Source::Listener => self.clients.accept(),
                    Source::Client(index) => {
                        if let Some(order) = self.clients.hear(index, &mut self.console)
                            && self.obey(index, order)
                        {
                            return 0;
                        }
                    }
                    Source::Stream(stream) => drop(self.console.read(stream, &mut self.clients)),
                    Source::Input => self.console.write_input(),
                }
            }
            self.clients.forget_gone();
        }
    }

    fn wait(&self, launcher: Option<&OwnedFd>) -> Vec<Source> {
        let mut asked: Vec<(Source, PollFd<'_>)> = Vec::new();
        let mut ask = |source, fd, flags| asked.push((source, PollFd::new(fd, flags)));
        if let Some(socket) = launcher {
            ask(Source::Launcher, socket.as_fd(), PollFlags::POLLIN);
        }
        if let Some(socket) = &self.first {
            ask(Source::First, socket.as_fd(), PollFlags::POLLIN);
        }
        ask(Source::Pid1, self.pidfd.as_fd(), PollFlags::POLLIN);
        if let Some(socket) = self.pages.server() {
            ask(Source::Pages, socket.as_fd(), PollFlags::POLLIN);
        }
        if let Some(life) = self.link.as_ref().and_then(Link::life) {
            ask(Source::Link, life, PollFlags::POLLIN);
        }
        ask(Source::Listener, self.clients.listener(), PollFlags::POLLIN);
        for (index, fd, flags) in self.clients.wishes(self.console.has_input_room()) {
            ask(Source::Client(index), fd, flags);
        }
        if self.clients.have_room() {
            for (stream, fd) in self.console.outputs() {
                ask(Source::Stream(stream), fd, PollFlags::POLLIN);
            }
        }
        if let Some(fd) = self.console.pending_input()
            && !self.clients.are_surveying()
        {
            ask(Source::Input, fd, PollFlags::POLLOUT);
        }
        let (sources, mut fds): (Vec<Source>, Vec<PollFd<'_>>) = asked.into_iter().unzip();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Vec::new(),
            Err(error) => {
                tracing::error!(%error, "poll");
                return Vec::new();
            }
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        sources
            .into_iter()
            .zip(&fds)
            .filter(|(_, fd)| ready(fd))
            .map(|(source, _)| source)
            .collect()
    }

    fn launcher(&mut self, socket: &OwnedFd) -> Heard {
        match message::get_with_files(socket) {
            Ok(Some((kind::PAGES, _, files))) => {
                self.pages.take(files);
                self.clients.set_loading(true);
                Heard::Other
            }
            Ok(Some((kind::JOIN, _, files))) => {
                self.joiner = files.into_iter().next();
                Heard::Other
            }
            Ok(Some((kind::EXECUTE, ..))) => {
                if let Some(first) = &self.first
                    && let Err(error) = message::put(first, kind::EXECUTE, &[])
                {
                    tracing::debug!(%error, "PID 1 is gone");
                }
                Heard::Other
            }
            Ok(Some((kind::COMMIT, payload, _))) => {
                if payload == message::THAW
                    && let Some(cgroup) = &self.cgroups.freezer
                    && let Err(error) = cgroup.thaw()
                {
                    let failure = message::failure(Errno::EIO, &error.to_string());
                    if let Err(error) = message::put(socket, kind::FAILED, &failure) {
                        tracing::debug!(%error, "the launcher is gone");
                    }
                    return Heard::Abandoned;
                }
                if !payload.is_empty() && payload != message::THAW {
                    return self.hold(socket, &payload);
                }
                self.phase = Phase::Running;
                self.points.keep();
                self.state.status = Status::Running;
                self.save();
                if let Err(error) = message::put(socket, kind::COMMIT, &[]) {
                    tracing::debug!(%error, "the launcher is gone");
                }
                Heard::Committed
            }
            Ok(Some(_)) => Heard::Other,
            Ok(None) | Err(_) => Heard::Abandoned,
        }
    }

    /// What joined it to the host's network has ended.
    fn join_again(&mut self) {
        if let Some(link) = self.link.as_mut() {
            let told = link.open_again();
            self.console.note(&told, &mut self.clients);
        }
    }

    fn hear_of_pages(&mut self) {
        let why = match self.pages.hear() {
            pages::Heard::Other => return,
            pages::Heard::All => return self.clients.set_loading(false),
            pages::Heard::Failed(why) => why,
            // They go when PID 1 does.
            pages::Heard::Gone if self.has_ended() => return,
            pages::Heard::Gone => "the processes that brought its memory are gone".to_owned(),
        };
        self.console
            .note(&format!("{why}: the sandbox is ended"), &mut self.clients);
        if !self.has_ended() {
            self.kill();
        }
    }

    fn has_ended(&self) -> bool {
        let mut ended = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        matches!(self.phase, Phase::Ended(_)) || poll(&mut ended, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Ends all tasks.
    fn kill(&self) {
        if let Err(error) = floe_sys::descriptor::pidfd_kill(self.pidfd.as_fd()) {
            tracing::debug!(%error, "PID 1 is gone already");
        }
        // Without one, its tasks end with PID 1.
        if let Err(error) = self.cgroups.kill_all() {
            tracing::error!(%error, "end the tasks of the sandbox");
        }
    }

    /// PID 1 says that its exec failed, or hangs up because it succeeded.
    fn first_speaks(&mut self, launcher: Option<&OwnedFd>) {
        let Some(first) = &self.first else { return };
        let (kind, payload) = match message::get(first) {
            Ok(Some((kind::FAILED, payload))) => (kind::FAILED, payload),
            Ok(Some(_)) => return,
            Ok(None) | Err(_) => {
                self.first = None;
                (kind::EXECUTED, Vec::new())
            }
        };
        if let Some(socket) = launcher
            && let Err(error) = message::put(socket, kind, &payload)
        {
            tracing::debug!(%error, "the launcher is gone");
        }
    }

    fn reap(&mut self) {
        let (status, by_signal) = match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED) {
            Ok(WaitStatus::Exited(_, code)) => (code, false),
            Ok(WaitStatus::Signaled(_, signal, _)) => (128 + signal as i32, true),
            Ok(_) | Err(Errno::EINTR) => return,
            Err(error) => {
                tracing::error!(%error, "wait for PID 1");
                (125, false)
            }
        };
        self.phase = Phase::Ended(End { status, by_signal });
    }

    /// A command may end before its launcher has come to commit; the launcher still decides whether the sandbox counts.
    fn commits(&mut self, launcher: &OwnedFd) -> bool {
        loop {
            match self.launcher(launcher) {
                Heard::Committed => return true,
                Heard::Abandoned => return false,
                Heard::Other => {}
            }
        }
    }

    fn save(&self) {
        if let Err(error) = self.state.write(&self.folder) {
            tracing::error!(%error, "write the state of the sandbox");
        }
    }

    /// PID 1 has ended: the kernel has ended all others of its namespace.
    fn end(mut self, end: End, launcher: Option<&OwnedFd>) -> i32 {
        self.console.drain(&mut self.clients);
        // Who ended it because of its memory has said so before.
        self.hear_of_pages();
        // What PID 1 said last may not have been heard yet; its death has closed the socket, so this waits for nothing.
        while self.first.is_some() {
            self.first_speaks(launcher);
        }
        if let Some(socket) = launcher
            && !self.commits(socket)
        {
            return self.abandon();
        }
        let checkpointed = self.handed_over || self.clients.end_announced();
        self.link = None;
        self.remove_cgroups();
        if checkpointed || self.remove {
            self.remove_folder();
        } else {
            self.state.status = Status::Exited(end.status);
            self.save();
            drop(std::fs::remove_file(self.folder.join(clients::SOCKET)));
        }
        let (kind, payload) = if checkpointed {
            (kind::CHECKPOINTED, Vec::new())
        } else {
            let mut payload = end.status.to_le_bytes().to_vec();
            payload.push(u8::from(end.by_signal));
            (kind::EXITED, payload)
        };
        self.clients.say_last(kind, &payload);
        0
    }

    /// The launcher is gone or gave up: nothing may be left behind.
    fn abandon(mut self) -> i32 {
        self.clear_away();
        1
    }

    /// Ends it, and removes all there is of it.
    fn clear_away(&mut self) {
        self.kill();
        // Already reaped, or reaped now; either way it is gone.
        let _ = waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED);
        self.link = None;
        self.remove_cgroups();
        self.remove_folder();
    }

    fn remove_cgroups(&self) {
        if let Err(error) = self.cgroups.remove() {
            tracing::error!(%error, "remove the sandbox's cgroups");
        }
    }

    fn remove_folder(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::error!(%error, "remove the sandbox's folder");
        }
    }
}

enum Heard {
    Abandoned,
    Committed,
    Other,
}
