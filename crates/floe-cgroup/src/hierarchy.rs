//! Which cgroup hierarchies are mounted, and where.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Which kind of freezer a hierarchy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Version 2.
    V2,
    /// The freezer controller of version 1.
    V1Freezer,
}

/// A hierarchy of version 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its controllers; or `name=` and its name, as in /proc/PID/cgroup.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub point: PathBuf,
}

/// Options of a version 1 mount that name no controller.
const NO_CONTROLLERS: [&str; 7] = [
    "rw",
    "ro",
    "xattr",
    "noprefix",
    "clone_children",
    "cpuset_v2_mode",
    "favordynmods",
];

/// Mount points of the hierarchies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// Those of version 1, each once.
    pub v1: Vec<Hierarchy>,
    /// Version 2; it need not be at /sys/fs/cgroup.
    pub v2: Option<PathBuf>,
    /// Version 1, freezer controller.
    pub v1_freezer: Option<PathBuf>,
}

impl Hierarchies {
    /// Reads the calling process's mounts.
    ///
    /// # Errors
    /// Those of reading /proc/self/mountinfo.
    pub fn probe() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// Reads the text of a mountinfo file.
    #[must_use]
    pub fn parse(mountinfo: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((front, back)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = front.split(' ').nth(4) else { continue };
            let mut words = back.split(' ');
            let (kind, options) = (words.next(), words.nth(1).unwrap_or_default());
            match kind {
                Some("cgroup2") => found.v2 = Some(PathBuf::from(point)),
                Some("cgroup") => found.note_v1(options, point),
                _ => {}
            }
        }
        found
    }

    fn note_v1(&mut self, options: &str, point: &str) {
        let names_one = |option: &&str| !NO_CONTROLLERS.contains(option) && !option.starts_with("release_agent=");
        let controllers: Vec<String> = options.split(',').filter(names_one).map(str::to_owned).collect();
        if controllers.iter().any(|controller| controller == "freezer") {
            self.v1_freezer = Some(PathBuf::from(point));
        }
        if !controllers.is_empty() && self.v1.iter().all(|known| known.controllers != controllers) {
            let point = PathBuf::from(point);
            self.v1.push(Hierarchy { controllers, point });
        }
    }

    /// The version 1 hierarchy that a controller, or `name=` and a name, is in.
    #[must_use]
    pub fn v1_with(&self, controller: &str) -> Option<&Hierarchy> {
        let mut all = self.v1.iter();
        all.find(|hierarchy| hierarchy.controllers.iter().any(|own| own == controller))
    }

    /// The directory of the version 2 cgroup that the calling process is in.
    ///
    /// # Errors
    /// Those of reading /proc/self/cgroup.
    pub fn own_v2(&self) -> io::Result<Option<PathBuf>> {
        let text = std::fs::read_to_string("/proc/self/cgroup")?;
        let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
        Ok(self.v2.as_ref().zip(own).map(|(root, own)| root.join(own)))
    }

    /// The one to use: version 2 where it is mounted.
    #[must_use]
    pub fn preferred(&self) -> Option<(Kind, &Path)> {
        let v2 = self.v2.as_deref().map(|path| (Kind::V2, path));
        v2.or_else(|| self.v1_freezer.as_deref().map(|path| (Kind::V1Freezer, path)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Hierarchies, Kind};
    use std::path::Path;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime shared:4 - cgroup cgroup rw,freezer\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn finds_both_on_a_hybrid_host_and_prefers_version_2() {
        let found = Hierarchies::parse(HYBRID);
        assert_eq!(found.preferred(), Some((Kind::V2, Path::new("/sys/fs/cgroup/unified"))));
        assert_eq!(found.v1_freezer.as_deref(), Some(Path::new("/sys/fs/cgroup/freezer")));
    }

    #[test]
    fn finds_the_controllers_of_version_1() {
        let more = "38 31 0:35 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,xattr,cpu,cpuacct\n\
            39 31 0:36 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,release_agent=/x,name=systemd\n\
            40 31 0:35 / /other rw - cgroup cgroup rw,cpu,cpuacct\n";
        let found = Hierarchies::parse(&format!("{HYBRID}{more}"));
        let point = |controller| found.v1_with(controller).map(|hierarchy| hierarchy.point.as_path());
        assert_eq!(point("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu")));
        assert_eq!(point("name=systemd"), Some(Path::new("/sys/fs/cgroup/systemd")));
        assert_eq!(point("memory"), None);
        assert_eq!(found.v1.len(), 3);
    }

    #[test]
    fn takes_the_freezer_of_version_1_where_there_is_nothing_else() {
        let text: String = HYBRID.lines().take(2).map(|line| format!("{line}\n")).collect();
        assert_eq!(
            Hierarchies::parse(&text).preferred().map(|(kind, _)| kind),
            Some(Kind::V1Freezer)
        );
        assert_eq!(Hierarchies::parse("").preferred(), None);
    }
}
