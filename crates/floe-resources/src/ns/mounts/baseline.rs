//! What of a sandbox's mounts a new sandbox has by itself: the host's mounts, a private /proc and where wanted a private
//! devpts (floe-sandbox, `first.rs`). Under another root than the host's that is nothing: all is made, but for the devpts.

use floe_image::record::MountPoint;
use floe_sys::{
    mount::attributes::{NODEV, NOEXEC, NOSUID},
    procfs::MountInfo,
};
use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
};

/// A sandbox's mounts compared with those of a new one.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    /// For each mount what it allows in a new sandbox, where that has it.
    pub has: Vec<Option<u32>>,
    /// Of those that floe itself mounts in a new sandbox, where.
    pub own: Vec<Option<&'static str>>,
    /// What a new sandbox has besides, in the order in which it is unmounted.
    pub unmounted: Vec<MountPoint>,
}

/// Whether floe itself mounted something at a place.
pub(super) type IsOurs<'a> = dyn Fn(&'static str, &MountInfo) -> bool + 'a;

/// What floe mounts in a new sandbox: type, root, where, what it allows, options of the filesystem. Terminals belong to a
/// group where the user namespace knows that, and it is shown by the host's number.
const OWN: [(&str, &str, &str, u32, &[&str]); 3] = [
    ("proc", "/", "/proc", NOSUID | NODEV | NOEXEC, &[]),
    (
        "devpts",
        "/",
        "/dev/pts",
        NOSUID | NOEXEC,
        &["mode=620", "ptmxmode=666"],
    ),
    (
        "devpts",
        "/ptmx",
        "/dev/ptmx",
        NOSUID | NOEXEC,
        &["mode=620", "ptmxmode=666"],
    ),
];

impl Baseline {
    /// Compares mounts with the host's, where terminals are given to their group if `grouped`. What floe mounts itself must be
    /// `ours`.
    pub(super) fn find(tree: &[MountInfo], host: &[MountInfo], (grouped, ours): (bool, &IsOurs<'_>)) -> Self {
        let mut found = Self {
            has: vec![None; tree.len()],
            own: vec![None; tree.len()],
            unmounted: Vec::new(),
        };
        let roots = root_of(tree).zip(root_of(host));
        let is_same = |(root, host_root): &(usize, usize)| identity(&tree[*root]) == identity(&host[*host_root]);
        let Some((root, host_root)) = roots.filter(is_same) else {
            found.find_terminals(tree, (grouped, ours));
            return found;
        };
        let mut same: HashMap<u32, Option<u32>> = HashMap::from([(tree[root].id, Some(host[host_root].id))]);
        let mut taken = BTreeSet::from([host_root]);
        found.has[root] = Some(host[host_root].attributes);
        for index in parents_first(tree).into_iter().filter(|index| *index != root) {
            let mount = &tree[index];
            let Some(parent) = same.get(&mount.parent).copied() else {
                continue;
            };
            let is_same = |(_, other): &(usize, &MountInfo)| {
                Some(other.parent) == parent && other.path == mount.path && identity(other) == identity(mount)
            };
            if let Some((at, other)) = host
                .iter()
                .enumerate()
                .find(|(at, it)| !taken.contains(at) && is_same(&(*at, it)))
            {
                taken.insert(at);
                same.insert(mount.id, Some(other.id));
                found.has[index] = Some(other.attributes);
            } else if let Some((place, attributes)) = own(mount, grouped)
                && !found.own.contains(&Some(place))
                && ours(place, mount)
            {
                same.insert(mount.id, None);
                (found.has[index], found.own[index]) = (Some(attributes), Some(place));
            }
        }
        found.unmounted = found.missing(host, &taken);
        found
    }

    /// Under another root the devpts that a new sandbox has is mounted once more: its terminal is in that.
    fn find_terminals(&mut self, tree: &[MountInfo], (grouped, ours): (bool, &IsOurs<'_>)) {
        let (.., place, _, _) = OWN[1];
        let is_it =
            |mount: &MountInfo| own(mount, grouped).is_some_and(|(found, _)| found == place && ours(place, mount));
        let at = tree.iter().position(is_it);
        if let Some(index) = at {
            self.own[index] = Some(place);
        }
    }

    /// Whether it has a devpts of its own where floe mounts one.
    pub(super) fn has_devpts(&self) -> bool {
        self.own.contains(&Some(OWN[1].2))
    }

    /// The host's mounts that are not there; what is on others comes first, and what is on one that goes is not named.
    fn missing(&self, host: &[MountInfo], taken: &BTreeSet<usize>) -> Vec<MountPoint> {
        let gone = |index: &usize| !taken.contains(index);
        let ids: BTreeSet<u32> = (0..host.len()).filter(gone).map(|index| host[index].id).collect();
        let order = parents_first(host);
        let tops = order
            .into_iter()
            .filter(gone)
            .filter(|index| !ids.contains(&host[*index].parent));
        let mut points: Vec<MountPoint> = tops.map(|index| MountPoint(host[index].path.clone())).collect();
        points.reverse();
        if !self.own.contains(&Some(OWN[0].2)) {
            points.insert(0, MountPoint(OWN[0].2.as_bytes().to_vec()));
        }
        points
    }
}

/// What makes two mounts show the same.
fn identity(mount: &MountInfo) -> (u32, &[u8], &[u8]) {
    (mount.device, &mount.root, &mount.kind)
}

/// Where floe mounts this itself in a new sandbox, and what it allows there.
fn own(mount: &MountInfo, grouped: bool) -> Option<(&'static str, u32)> {
    let (.., place, attributes, _) = OWN.into_iter().find(|(kind, root, place, _, options)| {
        let names = (mount.kind.as_slice(), mount.root.as_slice(), mount.path.as_slice());
        names == (kind.as_bytes(), root.as_bytes(), place.as_bytes()) && has_options(mount, options, grouped)
    })?;
    Some((place, attributes))
}

fn has_options(mount: &MountInfo, wanted: &[&str], grouped: bool) -> bool {
    let is_told = |key: &[u8]| key != b"rw" && (key != b"gid" || mount.kind != b"devpts");
    let shown = (mount.options.iter().filter(|(key, _)| is_told(key))).map(|(key, value)| {
        let key = String::from_utf8_lossy(key).into_owned();
        match value {
            Some(value) => format!("{key}={}", String::from_utf8_lossy(value)),
            None => key,
        }
    });
    let has_group = mount.options.iter().any(|(key, _)| key == b"gid");
    let fits = mount.kind != b"devpts" || has_group == grouped;
    fits && shown.collect::<BTreeSet<_>>() == wanted.iter().map(|option| (*option).to_owned()).collect()
}

/// The mount that is on none of the others.
pub(super) fn root_of(mounts: &[MountInfo]) -> Option<usize> {
    let ids: BTreeSet<u32> = mounts.iter().map(|mount| mount.id).collect();
    let is_root = |mount: &MountInfo| mount.path == b"/" && (mount.parent == mount.id || !ids.contains(&mount.parent));
    mounts.iter().position(is_root)
}

/// Positions of all mounts that are below the root, oldest first, but each behind the one that it is on, and behind those
/// that it would hide.
pub(super) fn parents_first(mounts: &[MountInfo]) -> Vec<usize> {
    let Some(root) = root_of(mounts) else { return Vec::new() };
    let mut on: HashMap<u32, Vec<usize>> = HashMap::new();
    for (index, mount) in mounts.iter().enumerate().filter(|(index, _)| *index != root) {
        on.entry(mount.parent).or_default().push(index);
    }
    let mut ready = BinaryHeap::from([Reverse(root)]);
    let (mut order, mut waiting) = (Vec::with_capacity(mounts.len()), HashMap::new());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        let above = on.remove(&mounts[index].id).unwrap_or_default();
        let by_path: HashMap<&[u8], usize> = above
            .iter()
            .map(|index| (mounts[*index].path.as_slice(), *index))
            .collect();
        let mut hidden: HashMap<usize, usize> = HashMap::new();
        for at in above.iter().flat_map(|lower| hiding(&mounts[*lower].path, &by_path)) {
            *hidden.entry(at).or_default() += 1;
        }
        ready.extend(
            above
                .iter()
                .filter(|at| !hidden.contains_key(at))
                .map(|at| Reverse(*at)),
        );
        waiting.extend(hidden);
        // It may have been the last one that others of its own parent waited for.
        let siblings: Vec<usize> = waiting
            .keys()
            .copied()
            .filter(|at| mounts[*at].parent == mounts[index].parent)
            .collect();
        let paths = siblings.iter().map(|at| (mounts[*at].path.as_slice(), *at)).collect();
        for at in hiding(&mounts[index].path, &paths) {
            if let Some(left) = waiting.get_mut(&at) {
                *left -= 1;
                if *left == 0 {
                    waiting.remove(&at);
                    ready.push(Reverse(at));
                }
            }
        }
    }
    order
}

/// Those of `by_path` that are at a path above this one.
fn hiding(path: &[u8], by_path: &HashMap<&[u8], usize>) -> Vec<usize> {
    let ends = path
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'/')
        .map(|(at, _)| at);
    ends.filter_map(|end| by_path.get(&path[..end]).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::Baseline;
    use floe_sys::procfs::{MountInfo, mounts_in};

    const HOST: &str = "21 1 253:0 / / rw,relatime - ext4 /dev/vda rw\n22 21 0:5 / /proc rw - proc proc rw\n\
        23 21 0:6 / /dev rw - devtmpfs devtmpfs rw\n24 23 0:7 / /dev/pts rw - devpts devpts rw\n\
        25 24 0:8 / /dev/pts rw - devpts devpts rw\n26 21 0:9 / /mnt/a rw - tmpfs tmpfs rw\n\
        27 26 0:10 / /mnt/a/b rw - tmpfs tmpfs rw\n";

    fn mounts(lines: &[&str]) -> Vec<MountInfo> {
        mounts_in(lines.join("\n").as_bytes())
    }

    fn known(found: &Baseline) -> Vec<bool> {
        found.has.iter().map(Option::is_some).collect()
    }

    fn unmounted(found: &Baseline) -> Vec<String> {
        let text = |point: &floe_image::record::MountPoint| String::from_utf8_lossy(&point.0).into_owned();
        found.unmounted.iter().map(text).collect()
    }

    #[test]
    fn the_hosts_mounts_and_floes_own_are_fine() {
        let mut lines: Vec<String> = HOST.lines().map(str::to_owned).collect();
        lines.push("50 22 0:77 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw".to_owned());
        let devpts = "- devpts devpts rw,gid=5,mode=620,ptmxmode=666";
        lines.push(format!("51 25 0:78 / /dev/pts rw,nosuid,noexec,relatime {devpts}"));
        lines.push(format!("52 23 0:78 /ptmx /dev/ptmx rw,nosuid,noexec,relatime {devpts}"));
        let tree = mounts_in(lines.join("\n").as_bytes());
        let found = Baseline::find(&tree, &mounts_in(HOST.as_bytes()), (true, &|_, _| true));
        assert!(known(&found).iter().all(|known| *known), "{found:#?}");
        assert!(found.has_devpts() && found.unmounted.is_empty(), "{found:#?}");
    }

    #[test]
    fn others_and_what_is_missing_are_found() {
        let tree = mounts(&[
            "41 40 253:0 / / ro - ext4 /dev/vda rw",
            "42 41 0:5 / /proc rw - proc proc rw",
            "50 42 0:77 / /proc rw - proc proc rw,hidepid=invisible",
            "43 41 0:6 / /dev rw - devtmpfs devtmpfs rw",
            "44 43 0:7 / /dev/pts rw - devpts devpts rw",
            "60 41 0:80 / /mnt rw shared:1 - tmpfs none rw",
            "61 60 0:9 / /mnt/a rw - tmpfs tmpfs rw",
        ]);
        let found = Baseline::find(&tree, &mounts_in(HOST.as_bytes()), (true, &|_, _| true));
        assert_eq!(known(&found), [true, true, false, true, true, false, false]);
        assert_eq!(unmounted(&found), ["/proc", "/mnt/a", "/dev/pts"]);
        assert!(!found.has_devpts());
    }

    #[test]
    fn what_would_be_hidden_comes_first() {
        let tree = mounts(&[
            "1 0 0:1 / / rw - tmpfs none rw",
            "2 1 0:2 / /a rw - tmpfs none rw",
            "3 2 0:3 / /a/x rw - tmpfs none rw",
            "4 1 0:4 / /a/b rw - tmpfs none rw",
            "5 1 0:5 / /c rw - tmpfs none rw",
        ]);
        assert_eq!(super::parents_first(&tree), [0, 3, 1, 2, 4]);
    }

    #[test]
    fn under_another_root_nothing_is_there_by_itself() {
        let tree = mounts(&[
            "41 40 0:50 / / rw - tmpfs none rw",
            "42 41 0:5 / /proc rw - proc proc rw",
            "43 41 0:78 / /dev/pts rw,nosuid,noexec,relatime - devpts devpts rw,gid=5,mode=620,ptmxmode=666",
        ]);
        let found = Baseline::find(&tree, &mounts_in(HOST.as_bytes()), (true, &|_, _| true));
        assert_eq!(known(&found), [false; 3]);
        assert!(found.has_devpts(), "{found:#?}");
        assert!(found.unmounted.is_empty(), "{found:#?}");
    }
}
