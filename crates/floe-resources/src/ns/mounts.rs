//! Mounts of a tree's own mount namespace. Restore gives it the host's mounts with a private /proc, and where it had one a
//! private devpts; a mount that would not come out of that is refused.

use super::NsError;
use crate::refusal::Refusals;
use floe_sys::Pid;
use std::collections::HashSet;

/// A line of mountinfo, as far as it says what is mounted where: root, mount point, device, read-only, type.
type MountKey<'a> = (&'a str, &'a str, &'a str, bool, &'a str);

fn parse(text: &str) -> impl Iterator<Item = MountKey<'_>> {
    text.lines().filter_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let mut words = front.split(' ').skip(2);
        let (device, root, point, options) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let read_only = options.split(',').any(|option| option == "ro");
        Some((root, point, device, read_only, back.split(' ').next()?))
    })
}

/// Whether it is a devpts where floe mounts one.
fn is_devpts((_, point, _, _, kind): &MountKey<'_>) -> bool {
    *kind == "devpts" && (*point == "/dev/pts" || *point == "/dev/ptmx")
}

/// Whether floe itself mounts this in a new sandbox.
fn is_own(mount: &MountKey<'_>) -> bool {
    let (root, point, _, _, kind) = *mount;
    kind == "proc" && point == "/proc" && root == "/" || is_devpts(mount)
}

/// Refuses mounts of `pid` that are neither the host's nor floe's own; whether it has a devpts of its own.
///
/// # Errors
/// [`NsError`].
pub fn look(pid: Pid, refusals: &mut Refusals) -> Result<bool, NsError> {
    let read = |path: String| std::fs::read_to_string(&path).map_err(|source| NsError::Read { path, source });
    let host = read("/proc/self/mountinfo".to_owned())?;
    let tree = read(format!("/proc/{pid}/mountinfo"))?;
    for (_, point, _, _, kind) in others(&tree, &host).filter(|mount| !is_own(mount)) {
        refusals.add(
            None,
            format!("mount {point} ({kind})"),
            "mounts made inside of a sandbox are not carried yet",
            "unmount it, or mount it on the host before the sandbox starts",
        );
    }
    Ok(others(&tree, &host).any(|mount| is_devpts(&mount)))
}

/// Mounts that the host has not.
fn others<'a>(tree: &'a str, host: &'a str) -> impl Iterator<Item = MountKey<'a>> {
    let known: HashSet<MountKey<'_>> = parse(host).collect();
    parse(tree).filter(move |mount| !known.contains(mount))
}

#[cfg(test)]
mod tests {
    use super::{is_devpts, is_own, others};

    const HOST: &str = "21 1 253:0 / / rw,relatime - ext4 /dev/vda rw\n22 21 0:5 / /proc rw - proc proc rw\n";

    #[test]
    fn the_hosts_mounts_and_a_private_proc_are_fine() {
        let tree = "41 40 253:0 / / rw,relatime - ext4 /dev/vda rw\n42 41 0:77 / /proc rw - proc proc rw\n";
        assert!(others(tree, HOST).all(|mount| is_own(&mount) && !is_devpts(&mount)));
    }

    #[test]
    fn others_are_named() {
        let tree = "41 40 253:0 / / ro - ext4 /dev/vda rw\n43 41 0:80 / /mnt rw shared:1 - tmpfs none rw\n\
            44 41 0:81 / /dev/pts rw - devpts devpts rw\n";
        let points = others(tree, HOST)
            .filter(|mount| !is_own(mount))
            .map(|(_, point, ..)| point);
        assert_eq!(points.collect::<Vec<_>>(), ["/", "/mnt"]);
        assert!(others(tree, HOST).any(|mount| is_devpts(&mount)));
    }
}
