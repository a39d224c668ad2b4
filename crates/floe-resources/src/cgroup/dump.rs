//! Reads the tree's cgroups.

use super::{FoundCgroups, TreeError, apart, file, knobs};
use crate::{
    ns::{self, NsError},
    refusal::Refusals,
    tree::{FoundProcess, FoundTree},
};
use floe_cgroup::folder;
use floe_image::record::{
    CgroupAccess, CgroupPlace, CgroupRecord, ExtendedAttribute, HierarchyRecord, NamespaceOrigin, NsPid,
};
use floe_sys::{
    Pid, descriptor, parallel,
    procfs::{self, CgroupsOf, OwnCgroup},
};
use nix::sched::CloneFlags;
use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsStr,
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

/// Permissions of files in a new cgroup.
const USUAL_MODES: [u32; 7] = [0, 0o200, 0o222, 0o444, 0o600, 0o644, 0o666];

/// Read and written by its owner.
const BOTH: u32 = 0o600;

/// What is known of a tree's cgroups before they are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// Those that are its own.
    pub paths: &'a [PathBuf],
    /// Those below that were frozen by themselves, and are thawed for the moment.
    pub frozen: &'a [PathBuf],
}

/// A thread and where it is in one hierarchy.
pub(super) struct Seat<'a> {
    process: &'a FoundProcess,
    ns_tid: i32,
    pub(super) directory: PathBuf,
}

/// Reads what is set in the tree's cgroups, and who is where. What can't be carried goes to `refusals`.
///
/// # Errors
/// [`TreeError`].
pub fn dump(tree: &FoundTree, own: Own<'_>, refusals: &mut Refusals) -> Result<FoundCgroups, TreeError> {
    let mut found = FoundCgroups::default();
    let inside = root_inside(tree)?;
    for (controllers, seats, is_top) in seats(tree)? {
        let shown = inside
            .as_ref()
            .map(|inside| inside.get(&controllers).map(Vec::as_slice));
        let namespace_root = shown.map(|shown| without_end(&seats.first()?.directory, shown?));
        let base = base(tree, own, (&seats, is_top), namespace_root.as_ref());
        let Some(shared) = seats.first().map(|seat| seat.directory.as_path()) else {
            continue;
        };
        let usual = base.as_deref().unwrap_or(shared);
        let apart = apart::find(tree, (usual, base.is_some()), &seats, refusals);
        let mut begins_here = namespace_root
            .as_ref()
            .is_none_or(|root| root.as_deref() == Some(usual));
        if base.is_none() && apart.is_empty() {
            found.shared.insert(identity(shared)?);
        } else {
            let places = places(
                &controllers,
                (base.as_deref(), shared),
                (&seats, own.frozen, &apart),
                refusals,
            )?;
            // What stands for a shared one may be below the own one.
            begins_here &=
                namespace_root.is_none() || places.iter().any(|(at, record)| at == usual && record.path.is_empty());
            for (directory, cgroup) in &places {
                let place = CgroupPlace {
                    hierarchy: controllers.clone(),
                    path: cgroup.path.clone(),
                };
                if !directory.as_os_str().is_empty() {
                    found.places.insert(identity(directory)?, place);
                }
            }
            found.records.push(hierarchy(controllers, places, &seats));
        }
        found.root_is_elsewhere |= !begins_here;
    }
    Ok(found)
}

/// What makes a directory another one than others.
fn identity(directory: &Path) -> Result<(u64, u64), TreeError> {
    let metadata = fs::metadata(directory).map_err(file("look at", directory))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Owner and permissions of a new one.
pub(super) fn usual() -> CgroupAccess {
    CgroupAccess {
        uid: 0,
        gid: 0,
        mode: 0o755,
    }
}

/// Each hierarchy with the places of all threads in it, and whether the root's place is the first of all.
fn seats(tree: &FoundTree) -> Result<Vec<(String, Vec<Seat<'_>>, bool)>, TreeError> {
    let mut cgroups = CgroupsOf::tasks(procfs::read("/proc/self/mountinfo")?);
    let mut all: BTreeMap<String, (Vec<Seat<'_>>, bool)> = BTreeMap::new();
    let tasks = tree.tasks();
    let texts = parallel::map(&tasks, parallel::FEW_FILES, |(process, thread)| {
        procfs::read_at_once(&format!("/proc/{}/task/{}/cgroup", process.pid, thread.tid))
    });
    for ((process, thread), text) in tasks.into_iter().zip(texts) {
        for OwnCgroup {
            hierarchy,
            path,
            is_top,
        } in cgroups.of(text?)
        {
            let controllers = String::from_utf8_lossy(hierarchy).into_owned();
            let (seats, top) = all.entry(controllers).or_insert_with(|| (Vec::new(), false));
            *top |= is_top;
            seats.push(Seat {
                process,
                ns_tid: thread.ns_tid,
                directory: PathBuf::from(OsStr::from_bytes(path)),
            });
        }
    }
    Ok(all.into_iter().map(|(name, (seats, top))| (name, seats, top)).collect())
}

/// What the root's own cgroup namespace shows of its places, by hierarchy; `None` where it has none.
fn root_inside(tree: &FoundTree) -> Result<Option<BTreeMap<String, Vec<u8>>>, NsError> {
    let Some(root) = tree.root() else { return Ok(None) };
    if ns::origin(root.task(), "cgroup")? == NamespaceOrigin::Host {
        return Ok(None);
    }
    let path = format!("/proc/{}/cgroup", root.task());
    let text = ns::run_inside(root.task(), CloneFlags::CLONE_NEWCGROUP, || fs::read(&path))?;
    let lines = text.split(|byte| *byte == b'\n');
    let parts = lines.filter_map(|line| {
        let mut parts = line.splitn(3, |byte| *byte == b':').skip(1);
        Some((
            String::from_utf8_lossy(parts.next()?).into_owned(),
            parts.next()?.to_vec(),
        ))
    });
    Ok(Some(parts.collect()))
}

/// The tree's own cgroup; `None` where it has none in a hierarchy.
fn base(
    tree: &FoundTree,
    own: Own<'_>,
    (seats, is_top): (&[Seat<'_>], bool),
    namespace_root: Option<&Option<PathBuf>>,
) -> Option<PathBuf> {
    let first = seats.first()?;
    let mut known = own.paths.iter();
    if let Some(known) = known.find(|path| seats.iter().any(|seat| seat.directory.starts_with(path))) {
        return Some(known.clone());
    }
    let common = seats
        .iter()
        .fold(first.directory.clone(), |common, seat| both(&common, &seat.directory));
    let mut candidates = namespace_root.into_iter().flatten().chain([&common]);
    let fits = |path: &&PathBuf| !is_top && common.starts_with(path) && holds_only(path, tree).unwrap_or(false);
    candidates.find(fits).cloned()
}

pub(super) fn refuse_place(seat: &Seat<'_>, reason: &str, refusals: &mut Refusals) {
    refusals.add(
        Some(&seat.process.subject()),
        format!("cgroup {}", seat.directory.display()),
        reason,
        "move the task back, or give the tree a cgroup of its own (floe run, or with --memory, --cpus or --pids one of these controllers)",
    );
}

/// A directory without what a namespace shows of it.
fn without_end(directory: &Path, shown: &[u8]) -> Option<PathBuf> {
    let shown = shown.strip_suffix(b"/").unwrap_or(shown);
    let rest = directory.as_os_str().as_bytes().strip_suffix(shown)?;
    Some(PathBuf::from(OsStr::from_bytes(rest)))
}

/// The deepest directory that both are in, or are.
fn both(one: &Path, other: &Path) -> PathBuf {
    one.components()
        .zip(other.components())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a)
        .collect()
}

/// Whether nobody but the tree is in a cgroup and those below.
pub(super) fn holds_only(path: &Path, tree: &FoundTree) -> Result<bool, TreeError> {
    let known: HashSet<Pid> = tree.processes.iter().map(|process| process.pid).collect();
    for directory in [path.to_owned()].into_iter().chain(folder::below(path)?) {
        if folder::members(&directory)?.iter().any(|pid| !known.contains(pid)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// All cgroups of a hierarchy, the own one first: each with its directory, which that of a sandbox has none of which stands for a
/// shared one.
fn places(
    controllers: &str,
    (base, shared): (Option<&Path>, &Path),
    (seats, frozen, apart): (&[Seat<'_>], &[PathBuf], &[apart::Top]),
    refusals: &mut Refusals,
) -> Result<Vec<(PathBuf, CgroupRecord)>, TreeError> {
    let is_of_devices = controllers.split(',').any(|controller| controller == "devices");
    let mut tops = Vec::new();
    let mut all = Vec::new();
    for (top, name) in apart {
        let read = subtree((top, name), (frozen, is_of_devices), refusals)?;
        tops.extend(read.first().cloned());
        all.extend(read);
    }
    let first = match base {
        Some(base) => {
            let mut own = subtree((base, b""), (frozen, is_of_devices), refusals)?;
            if let Some((_, own)) = own.first_mut() {
                // The own one is thawed by whoever restores it.
                own.frozen = false;
                apart::refuse_confined((base, own), seats, &tops, refusals);
            }
            own
        }
        None => {
            let mut stand_ins = apart::in_place_of_shared(shared, controllers.is_empty(), &tops);
            let last = stand_ins.pop().map(|record| (shared.to_owned(), record));
            let above = stand_ins.into_iter().map(|record| (PathBuf::new(), record));
            above.chain(last).collect()
        }
    };
    Ok(first.into_iter().chain(all).collect())
}

/// A cgroup and those below, by paths that begin with a name.
fn subtree(
    (top, name): (&Path, &[u8]),
    (frozen, is_of_devices): (&[PathBuf], bool),
    refusals: &mut Refusals,
) -> Result<Vec<(PathBuf, CgroupRecord)>, TreeError> {
    let mut found = Vec::new();
    for directory in [top.to_owned()].into_iter().chain(folder::below(top)?) {
        let mut record = cgroup(&directory, refusals)?;
        if is_of_devices {
            record.settings.extend(devices(&directory)?);
        }
        let below = directory.strip_prefix(top).unwrap_or(Path::new(""));
        let path = Path::new(OsStr::from_bytes(name)).join(below);
        record.path = match below.as_os_str().is_empty() {
            true => name.to_vec(),
            false => path.into_os_string().into_encoded_bytes(),
        };
        record.frozen |= frozen.contains(&directory);
        found.push((directory, record));
    }
    Ok(found)
}

fn hierarchy(controllers: String, places: Vec<(PathBuf, CgroupRecord)>, seats: &[Seat<'_>]) -> HierarchyRecord {
    let positions: BTreeMap<&Path, u32> = places.iter().map(|(at, _)| at.as_path()).zip(0..).collect();
    let mut members: Vec<(NsPid, u32)> = Vec::new();
    for seat in seats {
        match positions.get(seat.directory.as_path()) {
            Some(0) => {}
            Some(position) => members.push((NsPid(seat.ns_tid), *position)),
            None => tracing::debug!(directory = %seat.directory.display(), "a task is elsewhere, which was refused"),
        }
    }
    members.sort_unstable_by_key(|(tid, _)| tid.0);
    HierarchyRecord {
        controllers,
        members,
        cgroups: places.into_iter().map(|(_, record)| record).collect(),
    }
}

fn access(metadata: &fs::Metadata) -> CgroupAccess {
    CgroupAccess {
        uid: metadata.uid(),
        gid: metadata.gid(),
        mode: metadata.permissions().mode() & 0o7777,
    }
}

/// What one cgroup has, but for its path.
fn cgroup(directory: &Path, refusals: &mut Refusals) -> Result<CgroupRecord, TreeError> {
    let metadata = fs::metadata(directory).map_err(file("look at", directory))?;
    let mut record = CgroupRecord {
        access: access(&metadata),
        attributes: attributes(directory)?,
        ..CgroupRecord::default()
    };
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(directory).map_err(file("list", directory))? {
        let entry = entry.map_err(file("list", directory))?;
        if let (Ok(kind), Ok(name)) = (entry.file_type(), entry.file_name().into_string())
            && kind.is_file()
        {
            names.push(name);
        }
    }
    names.sort_by(|a, b| knobs::order(a).cmp(&knobs::order(b)));
    for name in names {
        let path = directory.join(&name);
        let metadata = fs::metadata(&path).map_err(file("look at", &path))?;
        let found = access(&metadata);
        if (found.uid, found.gid) != (0, 0) || !USUAL_MODES.contains(&found.mode) {
            record.files.push((name.clone(), found));
        }
        match name.as_str() {
            "cgroup.type" => record.threaded = text(&path)?.is_some_and(|text| text.trim() == "threaded"),
            "cgroup.subtree_control" => {
                let text = text(&path)?.unwrap_or_default();
                record.hands_on = text.split_whitespace().map(str::to_owned).collect();
            }
            "cgroup.freeze" | "freezer.self_freezing" => {
                record.frozen = text(&path)?.is_some_and(|text| text.trim() == "1");
            }
            name if knobs::may_set(name) && found.mode & BOTH == BOTH => {
                let text = text(&path)?.unwrap_or_default();
                if knobs::is_unknown(name, &text) {
                    refusals.add(
                        None,
                        format!("cgroup setting {}", path.display()),
                        "floe does not know it, and it may have been set",
                        "set it to 0 or max, or move the tree to another cgroup",
                    );
                }
                let found = knobs::differing(name, &text);
                record.settings.extend(found.map(|value| (name.to_owned(), value)));
            }
            _ => {}
        }
    }
    Ok(record)
}

/// What a file says; `None` where it says nothing in this cgroup.
fn text(path: &Path) -> Result<Option<String>, TreeError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(None),
        Err(error) => Err(file("read", path)(error)),
    }
}

/// Device rules of version 1, unless all is allowed.
fn devices(directory: &Path) -> Result<Option<(String, String)>, TreeError> {
    let text = text(&directory.join("devices.list"))?.unwrap_or_default();
    let text = text.trim_end();
    Ok((text != "a *:* rwm").then(|| ("devices.list".to_owned(), text.to_owned())))
}

/// Extended attributes that users and programs set; labels are the security module's own.
fn attributes(directory: &Path) -> Result<Vec<ExtendedAttribute>, TreeError> {
    let wrap = |error: nix::errno::Errno| file("read attributes of", directory)(io::Error::from(error));
    let names = descriptor::extended_attributes(directory).map_err(wrap)?;
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let names = names.filter(|name| !name.starts_with(b"security."));
    let read = |name: &[u8]| {
        let value = descriptor::extended_attribute(directory, name).map_err(wrap)?;
        let name = name.to_vec();
        Ok(ExtendedAttribute { name, value })
    };
    names.map(read).collect()
}
