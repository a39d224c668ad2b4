//! Who outside of the tree has what a file of the tree belongs to.

use super::comm;
use floe_sys::Pid;
use std::{
    collections::{HashMap, HashSet},
    os::unix::ffi::OsStrExt,
    path::Path,
};

/// A process, with its name, for each of these links of /proc/PID/fd that one has which is neither floe nor `inside`.
pub(super) fn who_holds<T>(links: &HashMap<Vec<u8>, T>, inside: &HashSet<Pid>) -> HashMap<Vec<u8>, (Pid, String)> {
    let mut found = HashMap::new();
    let own = Pid::new(std::process::id() as i32);
    let Ok(processes) = Path::new("/proc").read_dir() else {
        return found;
    };
    let pids = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::new);
    for pid in pids.filter(|pid| *pid != own && !inside.contains(pid)) {
        // Processes come and go while this runs; one that is gone holds nothing.
        let Ok(descriptors) = Path::new(&format!("/proc/{pid}/fd")).read_dir() else {
            continue;
        };
        for target in descriptors
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        {
            let link = target.as_os_str().as_bytes();
            if links.contains_key(link) {
                found.entry(link.to_vec()).or_insert_with(|| (pid, comm(pid)));
            }
        }
    }
    found
}
