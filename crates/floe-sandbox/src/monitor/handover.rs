//! The monitor's part in hand-overs between hosts: see `handover.rs`. Each order is obeyed whole, whatever becomes of who
//! gave it.

use super::{Heard, Monitor, Phase};
use crate::{
    handover::{HandedOver, Holding, remove_names},
    joiner,
    message::{self, kind},
    state::Status,
};
use floe_cgroup::{Cgroup, Kind};
use floe_sys::{
    Pid, descriptor,
    procfs::{self, Stat},
};
use nix::errno::Errno;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

impl Monitor {
    /// The launcher leaves a frozen sandbox that is not to run yet.
    pub(super) fn hold(&mut self, launcher: &OwnedFd, payload: &[u8]) -> Heard {
        let (answer, payload, heard) = match self.try_hold(payload) {
            Ok(()) => {
                self.phase = Phase::Running;
                (kind::COMMIT, Vec::new(), Heard::Committed)
            }
            Err(text) => (kind::FAILED, message::failure(Errno::EIO, &text), Heard::Abandoned),
        };
        if let Err(error) = message::put(launcher, answer, &payload) {
            tracing::debug!(%error, "the launcher is gone");
        }
        heard
    }

    fn try_hold(&mut self, payload: &[u8]) -> Result<(), String> {
        let Holding { id, permit } = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
        if self.cgroups.freezer.is_none() {
            // Nothing else would keep it from running.
            return Err("a sandbox without a cgroup can't be held frozen".to_owned());
        }
        self.state.status = Status::Held;
        self.state.handover = Some(id);
        self.state.write(&self.folder).map_err(|error| error.to_string())?;
        // In this order: who takes the permit away looks for what is held after that.
        match permit.try_exists() {
            Ok(true) => Ok(()),
            Ok(false) => Err("the migration was given up meanwhile".to_owned()),
            Err(error) => Err(format!("look for {}: {error}", permit.display())),
        }
    }

    /// What a client ordered about a hand-over; whether the sandbox is gone by that.
    pub(super) fn obey(&mut self, client: usize, (order, payload): (u8, Vec<u8>)) -> bool {
        let done = match order {
            kind::HAND_OVER => self.hand_over(&payload).map(|all| vec![u8::from(all)]),
            kind::RELEASE => self
                .check_held(&payload)
                .and_then(|()| self.release())
                .map(|()| Vec::new()),
            _ => self.check_held(&payload).map(|()| Vec::new()),
        };
        let drops = order == kind::DROP && done.is_ok();
        if drops {
            self.remove_names();
            self.clear_away();
        }
        match done {
            Ok(answer) => self.clients.answer(client, kind::NOTED, answer),
            Err(text) => self
                .clients
                .answer(client, kind::FAILED, message::failure(Errno::EINVAL, &text)),
        }
        if drops {
            let mut killed = (128 + libc::SIGKILL).to_le_bytes().to_vec();
            killed.push(1);
            self.clients.say_last(kind::EXITED, &killed);
        }
        drops
    }

    fn check_held(&self, id: &[u8]) -> Result<(), String> {
        let is_it = self.state.handover.as_ref().is_some_and(|own| own.as_bytes() == id);
        match (&self.state.status, is_it) {
            (Status::Held, true) => Ok(()),
            (Status::Held, false) => Err("the sandbox is held by another hand-over".to_owned()),
            _ => Err("the sandbox is not held".to_owned()),
        }
    }

    fn release(&mut self) -> Result<(), String> {
        let Some(cgroup) = &self.cgroups.freezer else {
            return Err("the sandbox has no cgroup".to_owned());
        };
        // It is the only one now, and runs also where nobody reaches it.
        if let Some(Err(why)) = self.joiner.take().map(|joiner| joiner::join(&joiner)) {
            let told = format!("it could not be joined to networks outside: {why}");
            self.console.note(&told, &mut self.clients);
        }
        // Written down before the thaw: one that runs must not be taken for held.
        self.state.status = Status::Running;
        let begun = self
            .state
            .write(&self.folder)
            .map_err(|error| error.to_string())
            .and_then(|()| cgroup.thaw().map_err(|error| error.to_string()));
        if let Err(error) = begun {
            self.state.status = Status::Held;
            self.save();
            return Err(error);
        }
        self.points.keep();
        Ok(())
    }

    /// Keeps the record, then ends PID 1: neither of the two without the other. Whether all other tasks have been ended with it,
    /// which they otherwise are as soon as it is gone.
    fn hand_over(&mut self, payload: &[u8]) -> Result<bool, String> {
        let record: HandedOver = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
        if self.phase != Phase::Running || self.state.status != Status::Running {
            return Err("the sandbox does not run".to_owned());
        }
        // Its tasks stand still under the tracer that has saved them. Should that die meanwhile, none may run on.
        let stopped = self.cgroups.freezer.as_ref().filter(|cgroup| cgroup.kind() == Kind::V2);
        let frozen = stopped
            .map(Cgroup::freeze)
            .transpose()
            .map_err(|error| error.to_string())?;
        // It may have died before, and they run on since: then what it has saved is another state than this one.
        self.check_stands_still(record.tracer)?;
        let failed = |error: io::Error| format!("write {}: {error}", record.path.display());
        let kept = Kept::write(&record).map_err(failed)?;
        // Version 1 does not freeze what is traced.
        self.check_stands_still(record.tracer).inspect_err(|_| kept.remove())?;
        let others = Others::of(self.cgroups.freezer.as_ref());
        kept.show(&record).map_err(failed)?;
        if let Some(frozen) = frozen {
            frozen.keep();
        }
        self.handed_over = true;
        if let Err(error) = descriptor::pidfd_kill(self.pidfd.as_fd()) {
            tracing::debug!(%error, "PID 1 is gone already");
        }
        let all = others.end();
        if let Some(Err(error)) = self.cgroups.freezer.as_ref().map(Cgroup::let_die) {
            tracing::debug!(%error, "the cgroup is gone already");
        }
        // It is there for whoever looks now, so that nothing may be done as if it were not.
        sync_folder(&record.path);
        Ok(all)
    }

    /// Whether all tasks that live are held by a tracer.
    fn check_stands_still(&self, (tracer, start): (i32, u64)) -> Result<(), String> {
        let ran_on = "the process that had saved the tree was killed, and it has run on since".to_owned();
        if !Stat::of(Pid::new(tracer)).is_ok_and(|stat| stat.starttime == start && stat.state != b'Z') {
            return Err(ran_on);
        }
        let processes = match &self.cgroups.freezer {
            Some(cgroup) => cgroup.processes().map_err(|error| error.to_string())?,
            // The tracer lets go of all or none.
            None => vec![Pid::new(self.state.pid1)],
        };
        for process in processes {
            let tasks = match procfs::threads(process) {
                Ok(tasks) => tasks,
                Err(error) if error.is_gone() => continue,
                Err(error) => return Err(error.to_string()),
            };
            for task in tasks {
                match procfs::Status::read(&format!("/proc/{task}")) {
                    Ok(status) if status.tracer == tracer || matches!(status.state, b'Z' | b'X') => {}
                    Ok(_) => return Err(ran_on),
                    Err(error) if error.is_gone() => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        Ok(())
    }

    /// Removes files of sockets that were bound anew for a sandbox that does not count.
    fn remove_names(&self) {
        if let Err(error) = remove_names(&self.folder, self.state.pid1) {
            tracing::error!(%error, "remove files of sockets");
        }
    }
}

/// The tasks of a sandbox besides PID 1, which stand still: the end of that takes as long as its memory is large, and they
/// need not live until then.
enum Others<'a> {
    Group(&'a Cgroup),
    Each(Vec<OwnedFd>),
    Unknown,
}

impl<'a> Others<'a> {
    /// Those of a sandbox. They are found before any of them ends, so that no number can be another task's by then.
    fn of(cgroup: Option<&'a Cgroup>) -> Self {
        let Some(cgroup) = cgroup else { return Self::Unknown };
        Self::in_group(cgroup).unwrap_or_else(|error| {
            tracing::info!(%error, "the tasks of the sandbox end when PID 1 has");
            Self::Unknown
        })
    }

    fn in_group(cgroup: &'a Cgroup) -> io::Result<Self> {
        let all: BTreeSet<Pid> = cgroup.processes().map_err(io::Error::other)?.into_iter().collect();
        // Of one that is elsewhere the first ancestor that is here has a child that is not.
        for process in &all {
            let children = procfs::children(*process).map_err(io::Error::other)?;
            // Zombies are in no list.
            let lives = |child: Pid| Stat::of(child).is_ok_and(|stat| stat.state != b'Z' || stat.num_threads > 1);
            if let Some(child) = children.iter().find(|child| !all.contains(child) && lives(**child)) {
                return Err(io::Error::other(format!("task {child} is not in its cgroup")));
            }
        }
        if cgroup.kind() == Kind::V2 {
            return Ok(Self::Group(cgroup));
        }
        let opened = all.into_iter().map(descriptor::pidfd_open);
        Ok(Self::Each(opened.collect::<Result<_, _>>()?))
    }

    /// Ends them; whether none of them can run any more.
    fn end(self) -> bool {
        let ended = match self {
            Self::Unknown => return false,
            Self::Group(cgroup) => cgroup.kill_at_once().map_err(io::Error::other),
            Self::Each(all) => all
                .iter()
                .try_for_each(|task| match descriptor::pidfd_kill(task.as_fd()) {
                    Ok(()) | Err(Errno::ESRCH) => Ok(()),
                    Err(error) => Err(error.into()),
                }),
        };
        ended
            .inspect_err(|error| tracing::info!(%error, "the tasks of the sandbox end when PID 1 has"))
            .is_ok()
    }
}

/// A record that is written, and has its name not yet.
struct Kept(PathBuf);

impl Kept {
    fn write(record: &HandedOver) -> io::Result<Self> {
        let beside = record.path.with_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(record.text.as_bytes())?;
        file.sync_all()?;
        Ok(Self(beside))
    }

    /// Gives it its name, where that still has what it began with.
    fn show(self, record: &HandedOver) -> io::Result<()> {
        let shown = match fs::read(&record.path) {
            Ok(text) if text == record.begun.as_bytes() => fs::rename(&self.0, &record.path),
            Ok(_) => Err(io::Error::other(
                "it does not say any more that the migration has begun",
            )),
            Err(error) => Err(error),
        };
        shown.inspect_err(|_| self.remove())
    }

    fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::error!(%error, "what was to be the record of a hand-over stays");
        }
    }
}

fn sync_folder(path: &Path) {
    let folder = path.parent().unwrap_or(Path::new("/"));
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        tracing::error!(%error, "the record of a hand-over may not survive a crash of this host");
    }
}
