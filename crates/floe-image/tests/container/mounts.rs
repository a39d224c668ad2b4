//! Mounts and filesystems that can't have been.

use crate::{contradictions::contradiction, sample::Sample};
use floe_image::record::*;

fn at(path: &str) -> MountPoint {
    MountPoint(path.as_bytes().to_vec())
}

fn mount(number: usize, fault: &str, change: impl FnOnce(&mut MountRecord)) {
    contradiction(&format!("mount {number} of mount namespace 0 {fault}"), |s| {
        change(&mut s.mount_namespaces[0].mounts[number]);
    });
}

fn filesystem(id: usize, fault: &str, change: impl FnOnce(&mut FilesystemRecord)) {
    contradiction(&format!("filesystem {id} {fault}"), |s| change(&mut s.filesystems[id]));
}

fn node(number: usize, fault: &str, change: impl FnOnce(&mut NodeRecord)) {
    contradiction(&format!("file {number} of filesystem 0 {fault}"), |s| {
        change(&mut s.filesystems[0].nodes[number]);
    });
}

#[test]
fn namespaces_are_the_trees_own() {
    contradiction("it has mounts of a mount namespace that is not the tree's own", |s| {
        s.sandbox.mount = NamespaceOrigin::Host;
    });
    let lost = "mount 0 of mount namespace 1 gets the mounts of a group that has no members";
    contradiction(lost, |s| s.mount_namespaces[1].mounts[0].master = 5);
    contradiction("it has more mounts than there may be", |s| {
        s.mount_namespaces[0].unmounted = vec![at("/a"); 100_001];
    });
    for path in ["/", "", "a", "/a/../b", "/a//b", "/a/"] {
        let unmounted = "it has something unmounted where nothing can have been";
        contradiction(unmounted, |s| s.mount_namespaces[0].unmounted[0] = at(path));
    }
}

#[test]
fn mounts_are_below_what_they_are_on() {
    mount(0, "is the first and not the root", |m| m.point = at("/mnt"));
    mount(1, "is not behind the one that it is on", |m| m.parent = 1);
    mount(2, "is not behind the one that it is on", |m| m.parent = u32::MAX);
    mount(1, "has a mount point that is no plain path", |m| {
        m.point = at("/mnt/../../etc");
    });
    mount(1, "has a mount point that is no plain path", |m| {
        m.point = MountPoint(b"/a\0b".to_vec());
    });
    mount(2, "is not below the one that it is on", |m| m.point = at("/mntsub"));
    mount(2, "can't be what every sandbox has, on what not every one has", |m| {
        m.source = MountSource::Inherited;
    });
    mount(3, "shows a path that is no plain one", |m| {
        let path = at("/..");
        m.source = MountSource::Path { path, directory: true };
    });
    let source = |filesystem, root| MountSource::Filesystem { filesystem, root };
    mount(2, "shows a filesystem that is missing", |m| {
        m.source = source(3, at("/"));
    });
    mount(2, "shows a path that is no plain one", |m| {
        m.source = source(0, at("sub"));
    });
    mount(2, "does not say what it allows", |m| m.attributes = None);
    // A mapping of users; two ways to keep times.
    for bits in [0x10_0000, 0x30] {
        mount(2, "allows what can't be", |m| m.attributes = Some(bits));
    }
}

#[test]
fn namespaces_that_mounts_keep_are_there() {
    let kept = |kind, number| MountSource::Namespace { kind, number };
    let order = "keeps a mount namespace that is missing, or is not behind its own";
    for number in [0, 2, u32::MAX] {
        mount(5, order, |m| m.source = kept(NamespaceKind::Mount, number));
    }
    let missing = "keeps a namespace that is missing";
    // One of another kind, and none.
    for number in [4, 7, u32::MAX] {
        mount(6, missing, |m| m.source = kept(NamespaceKind::Uts, number));
    }
    mount(6, missing, |m| m.source = kept(NamespaceKind::Pid, 3));
    mount(6, missing, |m| m.source = kept(NamespaceKind::Cgroup, 1));
    mount(6, "does not say what it allows", |m| m.attributes = None);
}

#[test]
fn groups_of_mounts_end_somewhere() {
    mount(4, "can't be unbindable and share mounts", |m| m.shared = 7);
    let locked = "is locked in a namespace of the tree root's user namespace";
    mount(4, locked, |m| m.locked = true);
    mount(2, "gets the mounts of a group that has no members", |m| m.master = 9);
    mount(1, "gets its own mounts", |m| m.master = 4);
    mount(2, "gets other mounts than its group does", |m| m.shared = 4);
}

#[test]
fn filesystems_have_options_that_are_known() {
    let option = |key: &str, value: &[u8]| FilesystemOption {
        key: key.to_owned(),
        value: Some(value.to_vec()),
    };
    contradiction("filesystem 1 is mounted nowhere", |s| {
        s.mount_namespaces[0].mounts.remove(4);
    });
    filesystem(0, "can't have been made of what it says", |f| f.source = vec![0]);
    filesystem(1, "has files and can't, or has none and must", |f| {
        (f.kind, f.options) = (FilesystemKind::Tmpfs, Vec::new());
    });
    // What the kernel would do for an image of its own accord.
    for (kind, key) in [
        (FilesystemKind::Overlay, "lowerdir"),
        (FilesystemKind::Proc, "release_agent"),
    ] {
        filesystem(1, "has an option that it can't have", |f| {
            f.kind = kind;
            f.options.push(option(key, b"/x"));
        });
    }
    filesystem(1, "has an option that it can't have", |f| {
        f.kind = FilesystemKind::Overlay;
    });
    filesystem(1, "has a layer that is no plain path", |f| {
        (f.kind, f.options) = (FilesystemKind::Overlay, vec![option("upperdir", b"/a/../b")]);
    });
    filesystem(0, "has an option with a value that can't be", |f| {
        f.options.push(option("mpol", &[b'a'; 256]));
    });
}

#[test]
fn files_are_in_directories_and_have_names() {
    node(0, "is the first and not the root", |n| n.kind = NodeKind::Fifo);
    node(1, "is not behind a directory that it is in", |n| n.parent = 1);
    node(7, "is not behind a directory that it is in", |n| n.parent = 2);
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'a'; 256]] {
        node(3, "has a name that can't be", |n| n.name = name.to_vec());
    }
    node(5, "has the name of another one", |n| n.name = b"link".to_vec());
    for to in [1, 4, 7] {
        node(4, "is another name of what can't have any", |n| {
            n.kind = NodeKind::Link { to }
        });
    }
    node(2, "can't have so many bytes", |n| {
        n.kind = NodeKind::File { size: 1 << 63 }
    });
    node(3, "leads to what is no path", |n| {
        n.kind = NodeKind::Symlink { target: Vec::new() }
    });
    node(2, "has an extended attribute that can't be", |n| {
        n.attributes[0].value = vec![0; 65_537];
    });
    contradiction("file 2 of filesystem 0 has no page map", |s: &mut Sample| {
        s.page_maps
            .retain(|map| !matches!(map.owner, ContentOwner::Node { .. }));
    });
    contradiction("1 pages at 0x2000 of file 2 of filesystem 0 lie outside of it", |s| {
        let map = s
            .page_maps
            .iter_mut()
            .find(|map| matches!(map.owner, ContentOwner::Node { .. }));
        map.expect("a map").runs[0].start = 0x2000;
    });
}
