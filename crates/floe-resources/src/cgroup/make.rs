//! Makes the tree's cgroups again, below those of the new sandbox.

use super::{
    CgroupPlan, TreeError, file, knobs,
    plan::{Part, Place},
};
use floe_cgroup::{Cgroups, Hierarchies, Kind};
use floe_image::record::{CgroupAccess, CgroupPlace, CgroupRecord, HierarchyRecord, ProcessRecord};
use floe_sys::{Pid, descriptor::set_attribute_of_link};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
};

/// Tells the rules that devices.allow and devices.deny make.
const DEVICES: &str = "devices.list";

/// Rules that allow all devices.
const ALL_DEVICES: [&str; 2] = ["b *:* rwm", "c *:* rwm"];

/// The tree's cgroups on this host.
#[derive(Debug)]
pub struct Made<'a> {
    parts: Vec<MadePart<'a>>,
}

#[derive(Debug)]
struct MadePart<'a> {
    part: &'a Part<'a>,
    base: PathBuf,
    /// Positions of the cgroups of threads that are not in the own one.
    members: HashMap<i32, u32>,
}

impl<'a> Made<'a> {
    /// Those that a plan puts into the cgroups of a sandbox. Nothing is made yet.
    ///
    /// # Errors
    /// [`TreeError::Inconsistent`] where the sandbox has not what was planned.
    pub fn new(plan: &'a CgroupPlan<'a>, cgroups: &Cgroups, hierarchies: &Hierarchies) -> Result<Self, TreeError> {
        let make = |part: &'a Part<'a>| {
            let base = match &part.place {
                Place::V2 => {
                    let own = cgroups.freezer.as_ref().filter(|own| own.kind() == Kind::V2);
                    own.map(|own| own.path().to_owned())
                }
                Place::V1(controller) => hierarchies.v1_with(controller).and_then(|hierarchy| {
                    let mut all = cgroups.paths();
                    all.find(|path| path.starts_with(&hierarchy.point)).map(Path::to_owned)
                }),
            };
            let lacking =
                || TreeError::Inconsistent("the sandbox may have no cgroup where the tree had one".to_owned());
            let members = part.tree.iter().flat_map(|tree| &tree.members);
            Ok(MadePart {
                part,
                base: base.ok_or_else(lacking)?,
                members: members.map(|(tid, index)| (tid.0, *index)).collect(),
            })
        };
        Ok(Self {
            parts: plan.parts.iter().map(make).collect::<Result<_, TreeError>>()?,
        })
    }

    /// Makes those below the own ones.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn folders(&self) -> Result<(), TreeError> {
        for (made, tree) in self.trees() {
            for cgroup in &tree.cgroups {
                let directory = made.directory(cgroup);
                if !cgroup.path.is_empty() {
                    fs::create_dir(&directory).map_err(file("make cgroup", &directory))?;
                }
                if let Some((_, value)) = cgroup.settings.iter().find(|(name, _)| name == DEVICES) {
                    prepare_devices(&directory, value)?;
                }
                if cgroup.threaded {
                    write(&directory.join("cgroup.type"), "threaded")?;
                }
            }
        }
        // A cpuset of version 1 takes nobody before.
        let is_v1 = |part: &Part<'_>| matches!(part.place, Place::V1(_));
        self.set_those(|part, name| is_v1(part) && knobs::is_early(name))
    }

    /// Files by which a process that writes 0 to them comes into the places of a cgroup namespace, of which `cgroups` are the
    /// sandbox's own ones.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn entrances(&self, cgroups: &Cgroups, places: &[CgroupPlace]) -> Result<Vec<File>, TreeError> {
        let mut directories: Vec<PathBuf> = cgroups.paths().map(Path::to_owned).collect();
        for place in places {
            let found = self.directory_of(place)?;
            let mut all = directories.iter_mut();
            match all.find(|directory| found.starts_with(&**directory)) {
                Some(directory) => *directory = found,
                None => return Err(TreeError::Inconsistent("a cgroup is not the sandbox's".to_owned())),
            }
        }
        let open = |directory: &PathBuf| {
            let path = directory.join("cgroup.procs");
            let opened = File::options().write(true).open(&path);
            opened.map_err(file("open", path))
        };
        directories.iter().map(open).collect()
    }

    /// The directory of a cgroup.
    ///
    /// # Errors
    /// [`TreeError::Inconsistent`] where it is not made.
    pub fn directory_of(&self, place: &CgroupPlace) -> Result<PathBuf, TreeError> {
        let mut trees = self.trees();
        let found = trees.find(|(_, tree)| tree.controllers == place.hierarchy);
        let lacking = || TreeError::Inconsistent(format!("no cgroups of the hierarchy {} are made", place.hierarchy));
        let (made, _) = found.ok_or_else(lacking)?;
        Ok(match place.path.is_empty() {
            true => made.base.clone(),
            false => made.base.join(OsStr::from_bytes(&place.path)),
        })
    }

    /// Hands on controllers, and sets what tasks need where they come. Nobody may be in a cgroup that hands some on.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn open_up(&self) -> Result<(), TreeError> {
        for (made, tree) in self.trees() {
            for cgroup in &tree.cgroups {
                let path = made.directory(cgroup).join("cgroup.subtree_control");
                for controller in &cgroup.hands_on {
                    write(&path, &format!("+{controller}"))?;
                }
            }
        }
        self.set_those(|_, name| knobs::is_early(name))
    }

    /// Moves a process, and all that it will fork, to its place.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn place(&self, process: &ProcessRecord, host: Pid) -> Result<(), TreeError> {
        // Of a leader that has ended nobody knows where it was.
        let leader = process.threads.get(usize::from(process.leader_ended.is_some()));
        let leader = leader.map_or(process.pid, |thread| thread.tid);
        for (made, tree) in self.trees() {
            if let Some(cgroup) = made.place_of(tree, leader.0)? {
                write(&made.directory(cgroup).join("cgroup.procs"), &host.to_string())?;
            }
        }
        Ok(())
    }

    /// Moves threads that are not where their leaders are.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn place_threads(&self, process: &ProcessRecord, hosts: &HashMap<i32, Pid>) -> Result<(), TreeError> {
        for (made, tree) in self.trees() {
            let leader = made.members.get(&process.pid.0);
            let others = process
                .threads
                .iter()
                .filter(|thread| made.members.get(&thread.tid.0) != leader);
            for thread in others {
                let Some(host) = hosts.get(&thread.tid.0) else { continue };
                let cgroup = made.place_of(tree, thread.tid.0)?.or_else(|| tree.cgroups.first());
                if let Some(cgroup) = cgroup {
                    let path = made.directory(cgroup).join(made.threads_file());
                    write(&path, &host.to_string())?;
                }
            }
        }
        Ok(())
    }

    /// Sets all that is set.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn set(&self) -> Result<(), TreeError> {
        self.set_those(|_, name| !knobs::is_early(name))?;
        for (made, tree) in self.trees() {
            for cgroup in &tree.cgroups {
                give(&made.directory(cgroup), cgroup)?;
            }
        }
        Ok(())
    }

    /// Freezes those that were frozen; the tree is frozen as a whole.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn freeze(&self) -> Result<(), TreeError> {
        for (made, tree) in self.trees() {
            let (name, value) = match made.part.place {
                Place::V2 => ("cgroup.freeze", "1"),
                Place::V1(_) => ("freezer.state", "FROZEN"),
            };
            for cgroup in tree.cgroups.iter().filter(|cgroup| cgroup.frozen) {
                write(&made.directory(cgroup).join(name), value)?;
            }
        }
        Ok(())
    }

    /// What differs from the image in where threads are.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn differences(&self, hosts: &HashMap<i32, Pid>) -> Result<Vec<String>, TreeError> {
        let mut found = Vec::new();
        for (made, tree) in self.trees() {
            for (index, cgroup) in (0..).zip(&tree.cgroups) {
                let path = made.directory(cgroup).join(made.threads_file());
                let text = match fs::read_to_string(&path) {
                    Ok(text) => text,
                    Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
                    Err(error) => return Err(file("read", path)(error)),
                };
                let there: HashSet<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
                let wanted = tree.members.iter().filter(|(_, place)| *place == index);
                let missing =
                    wanted.filter(|(tid, _)| hosts.get(&tid.0).is_none_or(|host| !there.contains(&host.raw())));
                found.extend(missing.map(|(tid, _)| format!("task {tid} is not in its cgroup {}", path.display())));
            }
        }
        Ok(found)
    }

    /// Those of which more is made than what is set in the own cgroup.
    fn trees(&self) -> impl Iterator<Item = (&MadePart<'a>, &'a HierarchyRecord)> {
        self.parts.iter().filter_map(|made| Some((made, made.part.tree?)))
    }

    fn set_those(&self, counts: impl Fn(&Part<'_>, &str) -> bool) -> Result<(), TreeError> {
        for made in &self.parts {
            for (index, settings) in made.part.settings.iter().enumerate() {
                let directory = match made.part.tree.and_then(|tree| tree.cgroups.get(index)) {
                    Some(cgroup) => made.directory(cgroup),
                    None => made.base.clone(),
                };
                for (name, value) in settings.iter().filter(|(name, _)| counts(made.part, name)) {
                    set(&directory, name, value)?;
                }
            }
        }
        Ok(())
    }
}

impl MadePart<'_> {
    fn directory(&self, cgroup: &CgroupRecord) -> PathBuf {
        if cgroup.path.is_empty() {
            self.base.clone()
        } else {
            self.base.join(OsStr::from_bytes(&cgroup.path))
        }
    }

    /// The cgroup of a thread, unless that is the own one.
    fn place_of<'b>(&self, tree: &'b HierarchyRecord, tid: i32) -> Result<Option<&'b CgroupRecord>, TreeError> {
        let Some(index) = self.members.get(&tid) else {
            return Ok(None);
        };
        let lacking = || TreeError::Inconsistent(format!("there is no cgroup {index}"));
        tree.cgroups.get(*index as usize).map(Some).ok_or_else(lacking)
    }

    fn threads_file(&self) -> &'static str {
        match self.part.place {
            Place::V2 => "cgroup.threads",
            Place::V1(_) => "tasks",
        }
    }
}

fn write(path: &Path, value: &str) -> Result<(), TreeError> {
    fs::write(path, value).map_err(file("write", path))
}

/// Has a file say something, and looks whether it does.
fn set(directory: &Path, name: &str, value: &str) -> Result<(), TreeError> {
    let path = directory.join(name);
    let read = || fs::read_to_string(&path).map_err(file("read", &path));
    if name == DEVICES {
        set_devices(directory, value)?;
        let after = read()?;
        let rules = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<String>>();
        return match rules(&after) == rules(value) {
            true => Ok(()),
            false => Err(differs(path, &after, value)),
        };
    }
    let before = read()?;
    if knobs::says(name, value, &before) {
        return Ok(());
    }
    if name == "memory.max" {
        refuse_too_much(directory, &path, value)?;
    }
    let says = if name == "memory.oom_control" {
        ""
    } else {
        before.trim_end()
    };
    for line in knobs::writings(value, says) {
        fs::write(&path, line).map_err(file("write", &path))?;
    }
    let after = read()?;
    if knobs::says(name, value, &after) {
        return Ok(());
    }
    Err(differs(path, &after, value))
}

fn differs(path: PathBuf, says: &str, wanted: &str) -> TreeError {
    TreeError::Differs {
        path,
        says: says.trim_end().to_owned(),
        wanted: wanted.to_owned(),
    }
}

/// Has a cgroup of version 1 allow devices by rules alone, which the kernel lets only one without others below
/// (devcgroup_update_access of security/device_cgroup.c). Until [`set_devices`] all are allowed: restoring takes more than
/// the tasks may have.
fn prepare_devices(directory: &Path, rules: &str) -> Result<(), TreeError> {
    write(&directory.join("devices.deny"), "a")?;
    let allow = directory.join("devices.allow");
    rules.lines().try_for_each(|rule| write(&allow, rule))?;
    for rule in ALL_DEVICES {
        match fs::write(&allow, rule) {
            // Where floe itself may not have them all.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            other => other.map_err(file("write", &allow))?,
        }
    }
    Ok(())
}

/// Allows only devices of these rules. Denying takes away what others with the same numbers allow, too.
fn set_devices(directory: &Path, rules: &str) -> Result<(), TreeError> {
    let deny = directory.join("devices.deny");
    ALL_DEVICES.iter().try_for_each(|rule| write(&deny, rule))?;
    let allow = directory.join("devices.allow");
    rules.lines().try_for_each(|rule| write(&allow, rule))
}

/// Version 2 ends tasks that have more than a new limit; version 1 refuses the limit.
fn refuse_too_much(directory: &Path, path: &Path, limit: &str) -> Result<(), TreeError> {
    let current = directory.join("memory.current");
    let text = fs::read_to_string(&current).map_err(file("read", &current))?;
    match (text.trim().parse::<u64>(), limit.parse::<u64>()) {
        (Ok(taken), Ok(number)) if taken > number => Err(TreeError::TooMuch {
            path: path.to_owned(),
            limit: limit.to_owned(),
            taken,
        }),
        _ => Ok(()),
    }
}

/// Gives owners, permissions and extended attributes.
fn give(directory: &Path, cgroup: &CgroupRecord) -> Result<(), TreeError> {
    for (name, access) in &cgroup.files {
        give_access(&directory.join(name), *access)?;
    }
    for attribute in &cgroup.attributes {
        set_attribute_of_link(directory, &attribute.name, &attribute.value)
            .map_err(|error| file("set an attribute of", directory)(io::Error::from(error)))?;
    }
    give_access(directory, cgroup.access)
}

fn give_access(path: &Path, access: CgroupAccess) -> Result<(), TreeError> {
    let metadata = fs::metadata(path).map_err(file("look at", path))?;
    if (metadata.uid(), metadata.gid()) != (access.uid, access.gid) {
        chown(path, Some(access.uid), Some(access.gid)).map_err(file("give away", path))?;
    }
    if metadata.permissions().mode() & 0o7777 != access.mode {
        let permissions = fs::Permissions::from_mode(access.mode);
        fs::set_permissions(path, permissions).map_err(file("set permissions of", path))?;
    }
    Ok(())
}
