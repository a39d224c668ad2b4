//! Which cgroups a process is in: /proc/PID/cgroup, and where these are mounted, cgroups(7).

use super::{ProcError, mounts::unescaped, read};
use crate::Pid;
use std::collections::HashMap;

/// A cgroup of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCgroup {
    /// Controllers of its hierarchy, or that one's name, as /proc/PID/cgroup has them; none for version 2.
    pub hierarchy: Vec<u8>,
    /// Its directory, as the process has it.
    pub path: Vec<u8>,
    /// Whether it is that of its hierarchy in which all others are.
    pub is_top: bool,
}

/// The cgroups of a process, in hierarchies that are mounted for it. Seen from the caller's cgroup namespace.
///
/// # Errors
/// [`ProcError`].
pub fn own_cgroups(pid: Pid) -> Result<Vec<OwnCgroup>, ProcError> {
    let cgroups = read(&format!("/proc/{pid}/cgroup"))?;
    let mounts = read(&format!("/proc/{pid}/mountinfo"))?;
    Ok(parse(&cgroups, &mounts))
}

/// The cgroups of many tasks, most of which are in the same ones.
#[derive(Debug)]
pub struct CgroupsOf {
    mounts: Vec<u8>,
    /// What the file of a task said, and what that means.
    known: HashMap<Vec<u8>, Vec<OwnCgroup>>,
}

impl CgroupsOf {
    /// In hierarchies that a mountinfo file names.
    #[must_use]
    pub fn tasks(mountinfo: Vec<u8>) -> Self {
        Self {
            mounts: mountinfo,
            known: HashMap::new(),
        }
    }

    /// As [`own_cgroups`], of the task whose /proc/PID/cgroup this is.
    pub fn of(&mut self, text: Vec<u8>) -> &[OwnCgroup] {
        let Self { mounts, known } = self;
        known.entry(text).or_insert_with_key(|text| parse(text, mounts))
    }
}

fn parse(cgroups: &[u8], mounts: &[u8]) -> Vec<OwnCgroup> {
    let lines = |text| <[u8]>::split(text, |byte| *byte == b'\n');
    // `4:memory:/floe/job`; `0::/floe/job`.
    let memberships = lines(cgroups).filter_map(|line| {
        let mut parts = line.splitn(3, |byte| *byte == b':').skip(1);
        Some((parts.next()?, parts.next()?))
    });
    let found = memberships.filter_map(|(hierarchy, cgroup)| {
        let directory = lines(mounts).find_map(|line| directory(line, hierarchy, cgroup));
        Some(OwnCgroup {
            hierarchy: hierarchy.to_vec(),
            path: directory?,
            is_top: cgroup == b"/",
        })
    });
    found.collect()
}

/// The directory of a cgroup below the mount of a line of mountinfo, if that is one of its hierarchy.
fn directory(line: &[u8], hierarchy: &[u8], cgroup: &[u8]) -> Option<Vec<u8>> {
    let mut words = line.split(|byte| *byte == b' ');
    let (root, point) = (unescaped(words.nth(3)?), unescaped(words.next()?));
    let mut behind = words.skip_while(|word| *word != b"-").skip(1);
    let (kind, options) = (behind.next()?, behind.nth(1)?);
    let has = |wanted: &[u8]| options.split(|byte| *byte == b',').any(|option| option == wanted);
    let fits = match hierarchy {
        b"" => kind == b"cgroup2",
        _ => kind == b"cgroup" && hierarchy.split(|byte| *byte == b',').all(has),
    };
    let rest = cgroup.strip_prefix(root.strip_suffix(b"/").unwrap_or(&root))?;
    let fits = fits && (rest.is_empty() || rest.starts_with(b"/"));
    let rest = if rest == b"/" { &[][..] } else { rest };
    fits.then(|| [&point, rest].concat())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn directories_of_cgroups_are_found() {
        let cgroups = b"4:memory:/floe/job\n3:cpu,cpuacct:/\n2:name=systemd:/elsewhere\n0::/floe/job\n";
        let mounts = b"20 1 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
            21 1 0:30 /floe /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
            22 1 0:31 /fl /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            23 1 0:32 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw\n";
        let found = parse(cgroups, mounts);
        let told: Vec<_> = found
            .iter()
            .map(|own| (String::from_utf8_lossy(&own.path).into_owned(), own.is_top))
            .collect();
        let wanted = [
            ("/sys/fs/cgroup/memory/job", false),
            ("/sys/fs/cgroup/cpu", true),
            ("/sys/fs/cgroup/uni fied/floe/job", false),
        ];
        assert_eq!(told, wanted.map(|(path, is_top)| (path.to_owned(), is_top)));
    }
}
