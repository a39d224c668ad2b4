//! Where on this host what was set in cgroups goes, and what stands in the way.

use super::{Made, TreeError, knobs};
use floe_cgroup::{CgroupError, Cgroups, Hierarchies, Kind, Layout, Watcher};
use floe_image::record::{CgroupRecord, HierarchyRecord};
use std::collections::{BTreeMap, BTreeSet};

/// Files and what they are to say.
pub(super) type Settings = Vec<(String, String)>;

/// A hierarchy of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    V2,
    /// The version 1 hierarchy with this controller, or `name=` and its name.
    V1(String),
}

/// What goes into one hierarchy.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub place: Place,
    /// Whose cgroups and members are made there; of others only what is set in the tree's own cgroup.
    pub tree: Option<&'a HierarchyRecord>,
    /// What is set, by the position of the cgroup.
    pub settings: Vec<Settings>,
}

/// What to make of an image's cgroups here.
#[derive(Debug, Default)]
pub struct CgroupPlan<'a> {
    pub(super) parts: Vec<Part<'a>>,
    controllers: BTreeSet<String>,
    obstacles: Vec<(String, String)>,
}

impl<'a> CgroupPlan<'a> {
    /// Finds a place for everything.
    #[must_use]
    pub fn new(records: &'a [HierarchyRecord], hierarchies: &Hierarchies) -> Self {
        let mut plan = Self::default();
        for record in records {
            let placed = if record.controllers.is_empty() {
                plan.place_v2(record, hierarchies)
            } else {
                plan.place_v1(record, hierarchies)
            };
            if let Err((object, reason)) = placed {
                plan.obstacles.push((object, reason));
            }
        }
        plan
    }

    /// The controllers, and named hierarchies, in which the sandbox needs cgroups.
    #[must_use]
    pub fn controllers(&self) -> Vec<String> {
        self.controllers.iter().cloned().collect()
    }

    fn place_v1(&mut self, record: &'a HierarchyRecord, hierarchies: &Hierarchies) -> Result<(), (String, String)> {
        let controller = record.controllers.split(',').next().unwrap_or_default();
        let Some(hierarchy) = hierarchies.v1_with(controller) else {
            return self.translate_to_v2(record, hierarchies);
        };
        for (name, _) in record.cgroups.iter().flat_map(|cgroup| &cgroup.settings) {
            let is_there = |controller: &str| hierarchy.controllers.iter().any(|known| known == controller);
            if knobs::controller(name).is_some_and(|controller| !is_there(controller)) {
                let reason = format!("{} has not its controller here", hierarchy.point.display());
                return Err((format!("cgroup setting {name}"), reason));
            }
        }
        self.controllers.insert(controller.to_owned());
        self.parts.push(Part {
            place: Place::V1(controller.to_owned()),
            tree: Some(record),
            settings: record.cgroups.iter().map(|cgroup| cgroup.settings.clone()).collect(),
        });
        Ok(())
    }

    fn translate_to_v2(&mut self, record: &HierarchyRecord, hierarchies: &Hierarchies) -> Result<(), (String, String)> {
        let object = format!("cgroups of the hierarchy {}", record.controllers);
        let own = alone(record).ok_or_else(|| {
            let reason = "there is no such hierarchy of version 1 here, and cgroups below the tree's own can't be made in version 2";
            (object.clone(), reason.to_owned())
        })?;
        let settings = knobs::to_v2(&own.settings).map_err(|name| {
            let reason = "there is no such hierarchy of version 1 here, and it means nothing in version 2";
            (format!("cgroup setting {name}"), reason.to_owned())
        })?;
        for (name, _) in &settings {
            let controller = knobs::controller(name).unwrap_or_default();
            if !offers(hierarchies, controller) {
                let reason = format!("there is no {controller} controller here, in either version");
                return Err((format!("cgroup setting {name}"), reason));
            }
            self.controllers.insert(controller.to_owned());
        }
        self.parts.push(Part {
            place: Place::V2,
            tree: None,
            settings: vec![settings],
        });
        Ok(())
    }

    fn place_v2(&mut self, record: &'a HierarchyRecord, hierarchies: &Hierarchies) -> Result<(), (String, String)> {
        let has_v2 = matches!(hierarchies.preferred(), Some((Kind::V2, _)));
        let own = record.cgroups.first();
        let mut elsewhere: BTreeMap<String, Settings> = BTreeMap::new();
        let mut settings = Vec::new();
        for (index, cgroup) in record.cgroups.iter().enumerate() {
            let mut here = Settings::new();
            for (name, value) in &cgroup.settings {
                let controller = knobs::controller(name);
                let stays = has_v2 && controller.is_none_or(|controller| offers(hierarchies, controller));
                let other = controller.map(knobs::translated_controller);
                match other.filter(|other| hierarchies.v1_with(other).is_some()) {
                    _ if stays => {
                        self.controllers.extend(controller.map(str::to_owned));
                        here.push((name.clone(), value.clone()));
                    }
                    Some(other) if index == 0 => {
                        let all = elsewhere.entry(other.to_owned()).or_default();
                        all.push((name.clone(), value.clone()));
                    }
                    Some(_) => {
                        let path = String::from_utf8_lossy(&cgroup.path);
                        let reason = "its controller is in version 1 here, where this cgroup is not made".to_owned();
                        return Err((format!("cgroup setting {name} of {path}"), reason));
                    }
                    None if controller.is_none() => {
                        let reason = "version 2 is not mounted here".to_owned();
                        return Err((format!("cgroup setting {name}"), reason));
                    }
                    None => {
                        let reason = "there is no such controller here, in either version".to_owned();
                        return Err((format!("cgroup setting {name}"), reason));
                    }
                }
            }
            settings.push(here);
        }
        for controller in record.cgroups.iter().flat_map(|cgroup| &cgroup.hands_on) {
            if !(has_v2 && offers(hierarchies, controller)) {
                let reason = "version 2 has no such controller here".to_owned();
                return Err((
                    format!("controller {controller} of cgroups below the tree's own"),
                    reason,
                ));
            }
            self.controllers.insert(controller.clone());
        }
        let stays = own.is_some_and(|own| !settings[0].is_empty() || !is_usual(own)) || record.cgroups.len() > 1;
        // Where nothing is set a mount shows it.
        let is_shown = own.is_some_and(|own| own.settings.is_empty());
        if stays && !has_v2 {
            let reason = "version 2 is not mounted here".to_owned();
            return Err((
                "cgroups below the tree's own, or who may do what with it".to_owned(),
                reason,
            ));
        }
        if stays || is_shown && has_v2 {
            self.parts.push(Part {
                place: Place::V2,
                tree: Some(record),
                settings,
            });
        }
        for (controller, settings) in elsewhere {
            let settings = knobs::to_v1(&settings).map_err(|name| {
                let reason = "its controller is in version 1 here, where it means nothing".to_owned();
                (format!("cgroup setting {name}"), reason)
            })?;
            self.controllers.insert(controller.clone());
            self.parts.push(Part {
                place: Place::V1(controller),
                tree: None,
                settings: vec![settings],
            });
        }
        Ok(())
    }
}

/// Whether version 2 has a controller.
fn offers(hierarchies: &Hierarchies, controller: &str) -> bool {
    let root = hierarchies.v2.as_ref().map(|root| root.join("cgroup.controllers"));
    let text = root
        .and_then(|path| std::fs::read_to_string(path).ok())
        .unwrap_or_default();
    text.split_whitespace().any(|known| known == controller)
}

/// The tree's own cgroup where there is no other, and nothing but settings in it.
fn alone(record: &HierarchyRecord) -> Option<&CgroupRecord> {
    match record.cgroups.as_slice() {
        [own] if is_usual(own) => Some(own),
        _ => None,
    }
}

/// Whether a cgroup differs from a new one by settings alone.
fn is_usual(own: &CgroupRecord) -> bool {
    let access = own.access;
    (access.uid, access.gid, access.mode) == (0, 0, 0o755)
        && own.files.is_empty()
        && own.attributes.is_empty()
        && own.hands_on.is_empty()
}

/// What stands in the way of a plan: it is carried out on cgroups that no task is in and that go again, also should floe
/// die. The caller must have one thread.
///
/// # Errors
/// [`TreeError`] where nothing can be tried.
pub fn rehearse(plan: &CgroupPlan<'_>, hierarchies: &Hierarchies) -> Result<Vec<(String, String)>, TreeError> {
    if !plan.obstacles.is_empty() || plan.parts.is_empty() {
        return Ok(plan.obstacles.clone());
    }
    let layout = match Layout::with(hierarchies, &plan.controllers()) {
        Ok(layout) => layout,
        Err(error) => return Ok(vec![("cgroups".to_owned(), error.to_string())]),
    };
    let name = format!("rehearsal-{}", std::process::id());
    let clear_up = || -> Result<(), CgroupError> { Cgroups::left_by(hierarchies, &name)?.remove() };
    let watcher = Watcher::start(|| {
        // Nobody is left to be told of a failure.
        drop(clear_up());
    });
    let watcher = watcher.map_err(|source| CgroupError::Watcher {
        path: name.clone().into(),
        source,
    })?;
    let tried = try_on(plan, hierarchies, &layout, &name);
    let cleared = clear_up();
    watcher.dismiss();
    cleared?;
    match tried {
        Ok(()) => Ok(Vec::new()),
        Err(error) => Ok(vec![("cgroups".to_owned(), told(&error))]),
    }
}

fn try_on(plan: &CgroupPlan<'_>, hierarchies: &Hierarchies, layout: &Layout, name: &str) -> Result<(), TreeError> {
    let cgroups = Cgroups::create(hierarchies, layout, name)?;
    let made = Made::new(plan, &cgroups, hierarchies)?;
    made.folders()?;
    made.open_up()?;
    made.set()
}

/// An error with its causes.
fn told(error: &TreeError) -> String {
    let mut text = format!("they can't be made here: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{CgroupPlan, Place};
    use floe_cgroup::{Hierarchies, Hierarchy};
    use floe_image::record::{CgroupAccess, CgroupRecord, HierarchyRecord};
    use std::path::{Path, PathBuf};

    /// A host with controllers of version 2, in a directory that stands for it, and of version 1.
    fn host(v2: Option<&Path>, v1: &[&str]) -> Hierarchies {
        let v1 = v1.iter().map(|names| Hierarchy {
            controllers: names.split(',').map(str::to_owned).collect(),
            point: PathBuf::from("/sys/fs/cgroup").join(names),
        });
        Hierarchies {
            v1: v1.collect(),
            v2: v2.map(Path::to_owned),
            v1_freezer: None,
        }
    }

    fn record(controllers: &str, settings: &[(&str, &str)]) -> HierarchyRecord {
        let access = CgroupAccess {
            uid: 0,
            gid: 0,
            mode: 0o755,
        };
        let own = CgroupRecord {
            access,
            settings: settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..CgroupRecord::default()
        };
        HierarchyRecord {
            controllers: controllers.to_owned(),
            cgroups: vec![own],
            members: Vec::new(),
        }
    }

    fn told(plan: &CgroupPlan<'_>) -> Vec<(Place, Vec<String>)> {
        let parts = plan.parts.iter();
        let said = parts.map(|part| {
            let settings = part.settings.iter().flatten();
            let settings = settings.map(|(name, value)| format!("{name}={value}"));
            (part.place.clone(), settings.collect())
        });
        said.collect()
    }

    #[test]
    fn what_was_set_goes_where_its_controller_is() {
        let folder = tempfile::tempdir().expect("a directory");
        std::fs::write(folder.path().join("cgroup.controllers"), "cpu memory\n").expect("write");
        let all = [
            record("memory", &[("memory.limit_in_bytes", "4096")]),
            record("pids", &[("pids.max", "5")]),
        ];
        let hybrid = host(Some(folder.path()), &["pids"]);
        let plan = CgroupPlan::new(&all, &hybrid);
        let wanted = [
            (Place::V2, vec!["memory.max=4096".to_owned()]),
            (Place::V1("pids".to_owned()), vec!["pids.max=5".to_owned()]),
        ];
        assert_eq!(told(&plan), wanted);
        assert_eq!(plan.controllers(), ["memory", "pids"]);
        assert!(plan.obstacles.is_empty());
    }

    #[test]
    fn version_2_is_translated_too() {
        let all = [record(
            "",
            &[("cpu.max", "5000 10000"), ("cpu.weight", "50"), ("pids.max", "5")],
        )];
        let old = host(None, &["cpu,cpuacct", "pids"]);
        let plan = CgroupPlan::new(&all, &old);
        let cpu = ["cpu.cfs_period_us=10000", "cpu.cfs_quota_us=5000", "cpu.shares=512"];
        let wanted = [
            (Place::V1("cpu".to_owned()), cpu.map(str::to_owned).to_vec()),
            (Place::V1("pids".to_owned()), vec!["pids.max=5".to_owned()]),
        ];
        assert_eq!(told(&plan), wanted);
    }

    #[test]
    fn what_has_no_place_stands_in_the_way() {
        let below = CgroupRecord {
            path: b"below".to_vec(),
            ..CgroupRecord::default()
        };
        let mut tree = record("pids", &[]);
        tree.cgroups.push(below.clone());
        let mut other_tree = record("", &[]);
        other_tree.cgroups.push(below);
        let nothing = host(None, &[]);
        let cases = [
            (
                record("memory", &[("memory.swappiness", "5")]),
                "cgroup setting memory.swappiness (5)",
            ),
            (
                record("memory", &[("memory.limit_in_bytes", "4096")]),
                "cgroup setting memory.max",
            ),
            (record("", &[("memory.high", "4096")]), "cgroup setting memory.high"),
            (
                record("", &[("cgroup.max.depth", "4")]),
                "cgroup setting cgroup.max.depth",
            ),
            (tree, "cgroups of the hierarchy pids"),
            (other_tree, "cgroups below the tree's own, or who may do what with it"),
        ];
        for (record, object) in cases {
            let plan = CgroupPlan::new(std::slice::from_ref(&record), &nothing);
            let objects: Vec<&str> = plan.obstacles.iter().map(|(object, _)| object.as_str()).collect();
            assert_eq!(objects, [object]);
            assert!(plan.parts.is_empty());
        }
    }
}
