//! Mounts of a program's own, and what it sees of them.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

const NONE: Option<&str> = None;

/// Mounts a filesystem of a type on a new folder; which is that.
///
/// # Panics
/// Where that fails.
pub fn filesystem(kind: &str, place: PathBuf, flags: MsFlags, options: &str) -> PathBuf {
    fs::create_dir_all(&place).expect("a folder");
    let mounted = mount(Some("victim"), &place, Some(kind), flags, Some(options));
    mounted.unwrap_or_else(|error| panic!("mount {kind}: {error}"));
    place
}

/// Mounts a folder or file at another place, which is there.
///
/// # Panics
/// Where that fails.
pub fn bind(from: &Path, to: &Path, flags: MsFlags) {
    mount(Some(from), to, NONE, MsFlags::MS_BIND | flags, NONE).expect("bind");
}

/// Changes a mount, or how it shares mounts.
///
/// # Panics
/// Where that fails.
pub fn change(place: &Path, flags: MsFlags) {
    mount(NONE, place, NONE, flags, NONE).expect("change a mount");
}

/// Moves a mount.
///
/// # Panics
/// Where that fails.
pub fn shift(from: &Path, to: &Path) {
    mount(Some(from), to, NONE, MsFlags::MS_MOVE, NONE).expect("move a mount");
}

/// Unmounts what is at a place, and all on it.
///
/// # Panics
/// Where that fails.
pub fn unmount(place: &Path) {
    umount2(place, MntFlags::MNT_DETACH).expect("unmount");
}

/// What mountinfo says of all mounts at or below a path, but numbers that differ each time: of groups which mounts are in
/// one.
///
/// # Panics
/// Where it can't be read.
#[must_use]
pub fn below(top: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let mut groups: BTreeMap<String, usize> = BTreeMap::new();
    let mut lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    lines.retain(|words| Path::new(words[4]).starts_with(top));
    // Which is on top of another one at the same place shows what they are.
    lines.sort_by_key(|words| words[4]);
    let told = lines.into_iter().map(|words| {
        let named = words[5..].iter().map(|word| match word.split_once(':') {
            Some((what @ ("shared" | "master"), group)) => {
                let next = groups.len();
                format!("{what}:{}", groups.entry(group.to_owned()).or_insert(next))
            }
            _ => (*word).to_owned(),
        });
        [words[3].to_owned(), words[4].to_owned()]
            .into_iter()
            .chain(named)
            .collect::<Vec<_>>()
            .join(" ")
    });
    told.collect()
}

/// What is in a folder, in the order in which it is listed, with everything about it but inode numbers and when it was last
/// changed in any way.
///
/// # Panics
/// Where it can't be read.
#[must_use]
pub fn files(top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        let itself = fs::symlink_metadata(&folder).expect("stat");
        let listed = fs::read_dir(&folder)
            .expect("list")
            .map(|entry| entry.expect("list").path());
        for path in std::iter::once(folder.clone()).chain(listed) {
            let about = fs::symlink_metadata(&path).expect("stat");
            found.push(format!(
                "{} {:o} {}:{} {} bytes, {} links, device {}, {}.{} -> {:?}",
                path.display(),
                about.mode(),
                about.uid(),
                about.gid(),
                if about.is_dir() { 0 } else { about.size() },
                about.nlink(),
                about.rdev(),
                about.mtime(),
                about.mtime_nsec(),
                fs::read_link(&path).unwrap_or_default()
            ));
            if about.is_dir() && path != folder && about.dev() == itself.dev() {
                folders.push(path);
            }
        }
    }
    found
}
