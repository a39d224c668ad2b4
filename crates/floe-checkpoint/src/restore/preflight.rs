//! What on this host stands in the way of an image, found before anything is made.

use super::{
    RestoreError, abilities, cgroups,
    disk::{FilesMode, Look},
    link::{self, Publish},
    mounts::Rehearsal,
    networks,
    processor::{self, ProcessorMode},
    supply,
};
use floe_image::{
    Image,
    record::{ConsoleRecord, HeaderRecord, MountSource, NamespaceOrigin, NsPid, ProcessRecord, ProcessState},
};
use floe_resources::{
    file::{Outside, OutsideEnds, check_sockets, kind_of, lacking_devices, looked_up_by, taken_addresses},
    ns::{Roots, sysctl},
};
use floe_sys::{
    Pid,
    descriptor::open_in_root,
    procfs::{self, Status},
    time_namespace, timer,
};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Something in the way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Obstacle {
    /// What it concerns.
    pub object: String,
    /// Why it stands in the way.
    pub reason: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.reason)
    }
}

/// Finds all obstacles.
///
/// # Errors
/// [`RestoreError`] where looking for them fails.
pub fn obstacles(
    image: &Image,
    (connections, outside, publish): (&OutsideEnds, Outside<'_>, Publish<'_>),
    ((files, mode), coming): ((FilesMode, ProcessorMode), &BTreeSet<Vec<u8>>),
) -> Result<Vec<Obstacle>, RestoreError> {
    let mut found = BTreeSet::new();
    machine(image.header(), &mut found)?;
    clocks(image, &mut found);
    found.extend(processor::obstacles(image, mode));
    // What follows is looked for where the tree will find it.
    let mut rehearsal = Rehearsal::of(image, outside.mounts)?;
    // Under another root than the tree's there is nothing to be looked for.
    let is_seen = rehearsal.obstacles.is_empty() || !has_another_root(image);
    found.extend(std::mem::take(&mut rehearsal.obstacles));
    let roots = rehearsal.roots();
    let look = Look::new(image, (roots, rehearsal.devices()), (files, coming))?;
    if is_seen {
        found.extend(look.obstacles()?);
    }
    check_sockets(image.open_files())?;
    for record in image.open_files().iter().filter(|_| is_seen) {
        let kind = kind_of(record)?;
        let (is_there, obstacle) = look.open_file(record)?;
        found.extend(obstacle);
        if is_there {
            continue;
        }
        let Some(own) = root_of(looked_up_by(record)?, image, roots) else {
            continue;
        };
        let own = own.as_ref().map_or(roots.of(record.mount_namespace), AsFd::as_fd);
        if let Some(reason) = kind.obstacle(record, own)? {
            found.insert(Obstacle {
                object: format!("open file {}", record.id),
                reason,
            });
        }
    }
    found.extend(networks::obstacles(image, outside.ends)?);
    found.extend(cgroups::obstacles(image)?);
    let own_network = image.sandbox().net == NamespaceOrigin::Own;
    let ends = connections.obstacles()?;
    let devices = lacking_devices(image, own_network)?;
    let taken = match own_network {
        true => Vec::new(),
        false => taken_addresses(image)?,
    };
    found.extend(link::obstacles(image, publish)?);
    for (object, reason) in ends
        .into_iter()
        .chain(devices)
        .chain(taken)
        .chain(outside.grants.obstacles(image)?)
    {
        found.insert(Obstacle { object, reason });
    }
    if outside.terminal && !matches!(image.sandbox().console, ConsoleRecord::Terminal(_)) {
        found.insert(Obstacle {
            object: "terminal".to_owned(),
            reason: "the tree had none that it could get again (--tty current)".to_owned(),
        });
    }
    let own = Status::read("/proc/self")?;
    abilities::obstacles(image, &own, &mut |object, reason| {
        found.insert(Obstacle { object, reason });
    })?;
    found.extend(supply::lacking(image, &own));
    for (object, reason) in sysctl::obstacles(&image.sandbox().sysctls, &image.sandbox().namespaces)? {
        found.insert(Obstacle { object, reason });
    }
    for record in image.processes() {
        privileges(record, &own, &mut found)?;
        for (what, directory) in [("working", &record.cwd), ("root", &record.root)] {
            let path = &directory.path;
            let exists = !is_seen
                || path.is_empty()
                || directory.ghost.is_some()
                || directory.mount_namespace == 0 && coming.contains(path)
                || open_in_root(
                    roots.of(directory.mount_namespace),
                    Path::new(OsStr::from_bytes(path)),
                    libc::O_PATH | libc::O_DIRECTORY,
                    0,
                )
                .is_ok();
            if !exists {
                let object = format!("{what} directory {}", String::from_utf8_lossy(path));
                found.insert(Obstacle {
                    object,
                    reason: "it does not exist here".to_owned(),
                });
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// Whether the tree's own root is another one than the host's.
fn has_another_root(image: &Image) -> bool {
    let first = image
        .mount_namespaces()
        .first()
        .and_then(|record| record.mounts.first());
    first.is_some_and(|root| root.source != MountSource::Inherited)
}

/// The root directory of a process where it is another one than that of a mount namespace; the outer `None` where it is not
/// there, or is to be made anew.
fn root_of(process: Option<NsPid>, image: &Image, roots: &Roots) -> Option<Option<OwnedFd>> {
    let record = image.processes().iter().find(|record| Some(record.pid) == process);
    let own = record.map(|record| &record.root).filter(|own| own.path != b"/");
    match own {
        None => Some(None),
        Some(own) if own.ghost.is_some() => None,
        Some(own) => {
            let path = Path::new(OsStr::from_bytes(&own.path));
            let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
            open_in_root(roots.of(own.mount_namespace), path, flags, 0)
                .ok()
                .map(Some)
        }
    }
}

fn clocks(image: &Image, found: &mut BTreeSet<Obstacle>) {
    if !time_namespace::exist() {
        found.insert(Obstacle {
            object: "clocks".to_owned(),
            reason: "this kernel has no time namespaces, in which they could go on from where they stood".to_owned(),
        });
    }
    let timers = image.processes().iter().flat_map(|process| &process.posix_timers);
    // Those below 0 are of tasks that are not there yet.
    let clocks: BTreeSet<i32> = timers.map(|timer| timer.clock).filter(|clock| *clock >= 0).collect();
    for clock in clocks {
        if let Err(error) = timer::try_clock(clock) {
            found.insert(Obstacle {
                object: format!("POSIX timers of clock {clock}"),
                reason: format!("they can't be made here: {error}"),
            });
        }
    }
}

fn machine(header: &HeaderRecord, found: &mut BTreeSet<Obstacle>) -> Result<(), RestoreError> {
    let uname = nix::sys::utsname::uname().map_err(RestoreError::system("read the kernel's name"))?;
    let arch = uname.machine().to_string_lossy();
    if header.arch != arch {
        found.insert(Obstacle {
            object: "architecture".to_owned(),
            reason: format!("the image is of {}, this machine is {arch}", header.arch),
        });
    }
    Ok(())
}

/// What a living process has more of than floe may give it; one that has ended gets none of it, and is in no namespaces that
/// would tell whose its capabilities were.
fn privileges(record: &ProcessRecord, own: &Status, found: &mut BTreeSet<Obstacle>) -> Result<(), RestoreError> {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    if matches!(record.state, ProcessState::Zombie { .. }) {
        return Ok(());
    }
    let [_, _, effective, bounding, _] = own.capabilities;
    let mut add = |reason| {
        found.insert(Obstacle {
            object: format!("process {}", record.pid),
            reason,
        })
    };
    // In a user namespace below floe's there are all.
    for thread in record.threads.iter().filter(|thread| thread.namespaces.user == 0) {
        let wanted = &thread.credentials;
        let all = wanted.permitted | wanted.effective | wanted.bounding | wanted.inheritable | wanted.ambient;
        if all & !bounding != 0 {
            add(format!("floe lacks capabilities that it has ({:#x})", all & !bounding));
        }
    }
    // In another user namespace than the first one these capabilities do not count.
    let is_first = floe_sys::namespace::is_in_first_user()?;
    let nice = record.threads.iter().map(|thread| thread.scheduling.nice).min();
    let own_nice = procfs::Stat::of(Pid::new(std::process::id() as i32))?.nice;
    if let Some(nice) = nice.filter(|nice| i64::from(*nice) < own_nice && !is_first) {
        add(format!(
            "its nice value is {nice}, and floe, whose own is {own_nice}, may set none that is lower"
        ));
    }
    if effective & CAP_SYS_RESOURCE == 0 || !is_first {
        let limits = procfs::limits("/proc/self")?.into_iter().zip(procfs::LIMITS);
        for (limit, ((_, hard), name)) in record.limits.iter().zip(limits) {
            if limit.hard > hard {
                add(format!(
                    "its hard limit is {} ({name}), and floe may not set more than {hard} (CAP_SYS_RESOURCE)",
                    limit.hard
                ));
            }
        }
    }
    Ok(())
}
