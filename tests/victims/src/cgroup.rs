//! Cgroups as a process finds its own ones: by looking for its number in the directories of a hierarchy.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where version 2 is mounted.
#[must_use]
pub fn version_2() -> Option<PathBuf> {
    points(" - cgroup2 ").into_iter().next()
}

/// Where the hierarchies of version 1 are mounted.
#[must_use]
pub fn version_1() -> Vec<PathBuf> {
    points(" - cgroup ")
}

fn points(kind: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let lines = mounts.lines().filter(|line| line.contains(kind));
    lines
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect()
}

/// The cgroup below a directory, or that one, that has this process.
#[must_use]
pub fn own_below(folder: &Path) -> Option<PathBuf> {
    if members(folder).contains(&(std::process::id() as i32)) {
        return Some(folder.to_owned());
    }
    let folders = fs::read_dir(folder).ok()?.flatten();
    folders
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .find_map(|entry| own_below(&entry.path()))
}

/// The processes that are in just this cgroup, lowest first.
#[must_use]
pub fn members(folder: &Path) -> Vec<i32> {
    numbers(&text(folder, "cgroup.procs"))
}

/// Numbers in lines, lowest first; others' that have none here left out.
#[must_use]
pub fn numbers(text: &str) -> Vec<i32> {
    let numbers = text.lines().filter_map(|line| line.parse().ok());
    let mut found: Vec<i32> = numbers.filter(|number| *number != 0).collect();
    found.sort_unstable();
    found
}

/// What a file of a cgroup says; nothing where there is none.
#[must_use]
pub fn text(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Writes to a file of a cgroup.
///
/// # Panics
/// Where that fails.
pub fn set(folder: &Path, name: &str, value: impl std::fmt::Display) {
    let path = folder.join(name);
    fs::write(&path, value.to_string()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Makes a cgroup.
///
/// # Panics
/// Where that fails.
#[must_use]
pub fn make(path: PathBuf) -> PathBuf {
    fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    path
}
