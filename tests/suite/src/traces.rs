//! What a floe that was stopped could leave on the machine: processes, cgroups, mounts, files.

use crate::Host;
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Whether what a process writes is followed, as a mapping tells.
///
/// # Panics
/// Without such a process.
#[must_use]
pub fn is_followed(process: i32) -> bool {
    let text = fs::read_to_string(format!("/proc/{process}/smaps")).expect("smaps");
    let mut flags = text.lines().filter_map(|line| line.strip_prefix("VmFlags:"));
    flags.any(|flags| flags.split_ascii_whitespace().any(|flag| flag == "uw"))
}

/// What there is of one host's doing: state folders, files, cgroups, processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// What there is and stays: what is seen in each of several looks. A shell that has forked and not executed its
    /// command yet is not. `names` are those of the sandboxes that may exist; `folders` are looked into for files.
    #[must_use]
    pub fn look(host: &Host, names: &[&str], folders: &[&Path]) -> Self {
        let mut stays = Self::glance(host, names, folders);
        for _ in 0..6 {
            std::thread::sleep(Duration::from_millis(25));
            let now = Self::glance(host, names, folders);
            stays.0.retain(|trace| now.0.contains(trace));
        }
        stays
    }

    fn glance(host: &Host, names: &[&str], folders: &[&Path]) -> Self {
        let mut found = BTreeSet::new();
        for folder in folders.iter().copied().chain([host.path("state").as_path()]) {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| format!("file {}", entry.path().display())));
        }
        cgroups(names, &mut found);
        processes(host, &mut found);
        Self(found)
    }

    /// Nothing of the sandbox `name` is among these.
    ///
    /// # Panics
    /// Where something is.
    pub fn expect_none_of(&self, name: &str) {
        let left: Vec<_> = self.0.iter().filter(|trace| trace.contains(name)).collect();
        assert!(left.is_empty(), "left behind {left:?}");
    }

    /// Looks again until all is as it was; what is not goes by itself, but takes a moment.
    ///
    /// # Panics
    /// Where it does not go.
    pub fn expect_again(&self, host: &Host, names: &[&str], folders: &[&Path], when: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = Self::glance(host, names, folders);
            let (new, mut gone): (Vec<_>, Vec<_>) =
                (now.0.difference(&self.0).collect(), self.0.difference(&now.0).collect());
            // A cgroup may have been that of another test's sandbox of this name.
            gone.retain(|trace| !trace.starts_with("cgroup "));
            if new.is_empty() && gone.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "{when}: left behind {new:?}, lost {gone:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Cgroups of sandboxes with these names, in every hierarchy.
fn cgroups(names: &[&str], found: &mut BTreeSet<String>) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
        let Some(point) = line.split(' ').nth(4) else { continue };
        let entries = fs::read_dir(Path::new(point).join("floe"))
            .into_iter()
            .flatten()
            .flatten();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let ours = name.rsplit_once('-').is_some_and(|(name, _)| names.contains(&name));
            if ours {
                found.insert(format!("cgroup {}", path.display()));
            }
        }
    }
}

/// Processes that know of this host's folder: by their command line, their working directory or their open files.
fn processes(host: &Host, found: &mut BTreeSet<String>) {
    let own = std::process::id().to_string();
    let own_line = fs::read("/proc/self/cmdline").unwrap_or_default();
    let folder = host.path("");
    let folder = folder.to_string_lossy();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let base = Path::new("/proc").join(&pid);
        let line = fs::read(base.join("cmdline")).unwrap_or_default();
        // A child of this very program, started by another test and not yet the command it is about to be.
        if line == own_line {
            continue;
        }
        let mut links = vec![base.join("cwd")];
        let descriptors = fs::read_dir(base.join("fd")).into_iter().flatten().flatten();
        links.extend(descriptors.map(|entry| entry.path()));
        let knows = |path: &std::path::PathBuf| {
            fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with(&*folder))
        };
        if String::from_utf8_lossy(&line).contains(&*folder) || links.iter().any(knows) {
            let comm = fs::read_to_string(base.join("comm")).unwrap_or_default();
            // The workload's own short-lived processes come and go.
            if comm.trim() != "sleep" {
                found.insert(format!("process {pid} {}", comm.trim()));
            }
        }
    }
}
