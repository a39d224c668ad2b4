//! Cgroups of processes, as directories.

use crate::Host;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The directories of the cgroups that a process is in, of all hierarchies.
#[must_use]
pub fn cgroups_of(pid: i32) -> Vec<PathBuf> {
    let memberships = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for line in memberships.lines() {
        let mut words = line.splitn(3, ':').skip(1);
        let (Some(hierarchy), Some(path)) = (words.next(), words.next()) else {
            continue;
        };
        let fits = |line: &&str| {
            let options = line.rsplit(' ').next().unwrap_or_default();
            let is_v2 = line.contains(" - cgroup2 ");
            let has = |wanted: &str| options.split(',').any(|option| option == wanted);
            (is_v2 && hierarchy.is_empty())
                || (line.contains(" - cgroup ") && !hierarchy.is_empty() && hierarchy.split(',').all(has))
        };
        let mount = mounts.lines().find(fits);
        if let Some(point) = mount.and_then(|line| line.split(' ').nth(4)) {
            found.push(Path::new(point).join(path.trim_start_matches('/')));
        }
    }
    found
}

/// The text of a file of one of the cgroups of a process.
///
/// # Panics
/// Where none has it.
#[must_use]
pub fn cgroup_file(pid: i32, names: &[&str]) -> String {
    let all = cgroups_of(pid);
    let mut files = names
        .iter()
        .flat_map(|name| all.iter().map(move |path| path.join(name)));
    let found = files.find_map(|file| fs::read_to_string(file).ok());
    found.unwrap_or_else(|| panic!("none of {names:?} in {all:?}"))
}

const EACH_CGROUP2: &str = "findmnt -rn -t cgroup2 -o TARGET";
const EACH_CGROUP1: &str = "findmnt -rn -t cgroup -o TARGET";

/// Takes away what this host has, in a mount namespace that every `floe` of the test enters anew.
fn host(script: &str) -> Host {
    let script = format!("set -e; {script}; exec \"$@\"");
    Host::behind(&["unshare", "--mount", "sh", "-c", &script, "sh"])
}

/// One that has none.
#[must_use]
pub fn host_without_cgroups() -> Host {
    host(&format!(
        "{{ {EACH_CGROUP1}; {EACH_CGROUP2}; }} | while read -r point; do umount -l \"$point\"; done"
    ))
}

/// One that has version 1 alone.
#[must_use]
pub fn host_of_version_1() -> Host {
    let freezer = "grep -q ' - cgroup .*freezer' /proc/self/mountinfo || mount -t cgroup -o freezer none /mnt";
    host(&format!(
        "{EACH_CGROUP2} | while read -r point; do umount -l \"$point\"; done; {freezer}"
    ))
}

/// One that has version 2 alone.
#[must_use]
pub fn host_of_version_2() -> Host {
    host(&format!(
        "{{ {EACH_CGROUP1}; {EACH_CGROUP2}; }} | while read -r point; do umount -l \"$point\"; done; \
         umount -l /sys/fs/cgroup || true; mount -t cgroup2 none /sys/fs/cgroup"
    ))
}
