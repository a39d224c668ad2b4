//! Where a tree's mounts show a file whose own mount is not among them: it was opened before the tree got another root, or by
//! one that is outside, and its link in /proc counts from the root of a mount that was taken away, or of another namespace.

use super::shape::{below, joined};
use crate::ns::inside::NsError;
use floe_sys::procfs::{self, MountInfo};

/// What mounts show.
#[derive(Debug, Default)]
pub(in crate::ns) struct Views {
    tree: Vec<MountInfo>,
    /// Those of floe's own namespace.
    outer: Vec<MountInfo>,
}

impl Views {
    /// Those of a mount namespace.
    ///
    /// # Errors
    /// [`NsError`].
    pub(in crate::ns) fn new(tree: Vec<MountInfo>) -> Result<Self, NsError> {
        let outer = procfs::mount_points("/proc/thread-self").map_err(NsError::Proc)?;
        Ok(Self { tree, outer })
    }

    /// All of the namespace.
    pub(in crate::ns) fn mounts(&self) -> &[MountInfo] {
        &self.tree
    }

    /// The paths at which a file of a filesystem may be, whose link says `target`.
    pub(in crate::ns) fn paths(&self, device: u64, target: &[u8]) -> Vec<Vec<u8>> {
        let of_it = |mount: &&MountInfo| libc::makedev(mount.device >> 20, mount.device & 0xf_ffff) == device;
        let outer = self.outer.iter().filter(of_it);
        // From the root of its filesystem: all of that was mounted, or it is where floe sees it.
        let whole = std::iter::once(target.to_vec());
        let inner = whole.chain(outer.filter_map(|mount| Some(joined(&mount.root, below(target, &mount.path)?).0)));
        let inner: Vec<Vec<u8>> = inner.collect();
        let tree = self.tree.iter().filter(of_it);
        tree.flat_map(|mount| {
            let rest = inner.iter().filter_map(|path| below(path, &mount.root));
            rest.map(|rest| joined(&mount.path, rest).0).collect::<Vec<_>>()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Views;
    use floe_sys::procfs::mounts_in;

    #[test]
    fn files_are_found_where_mounts_show_them() {
        let outer = ["1 0 8:1 / / rw - ext4 a rw", "2 1 8:2 / /home rw - ext4 b rw"];
        let tree = [
            "3 0 0:9 /top / rw - tmpfs none rw",
            "4 3 8:1 /usr /usr rw - ext4 a rw",
            "5 3 8:2 /me/data /data rw - ext4 b rw",
            "6 5 8:2 /you /data/you rw - ext4 b rw",
        ];
        let read = |lines: &[&str]| mounts_in(lines.join("\n").as_bytes());
        let views = Views {
            tree: read(&tree),
            outer: read(&outer),
        };
        let found = |minor: u32, target: &str| {
            let paths = views.paths(libc::makedev(8, minor), target.as_bytes()).into_iter();
            paths
                .map(|path| String::from_utf8_lossy(&path).into_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(found(2, "/home/me/data/file"), ["/data/file"]);
        assert_eq!(found(2, "/you/file"), ["/data/you/file"]);
        assert_eq!(found(2, "/home/me/data"), ["/data"]);
        assert!(found(1, "/etc/passwd").is_empty() && found(3, "/usr").is_empty());
        assert_eq!(found(1, "/usr/bin/env"), ["/usr/bin/env", "/usr/bin/env"]);
    }
}
