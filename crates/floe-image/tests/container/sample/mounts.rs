//! Mounts of the golden image, and what is in its tmpfs.

use super::cgroups::place;
use floe_image::record::*;

fn at(path: &[u8]) -> MountPoint {
    MountPoint(path.to_vec())
}

fn mount(parent: u32, point: &[u8], source: MountSource) -> MountRecord {
    MountRecord {
        parent,
        point: at(point),
        attributes: (source != MountSource::Inherited).then_some(0x6),
        source,
        shared: 0,
        master: 0,
        unbindable: false,
        locked: false,
    }
}

/// What is mounted.
pub fn mount_namespaces() -> Vec<MountNamespaceRecord> {
    let root = MountSource::Filesystem {
        filesystem: 0,
        root: at(b"/"),
    };
    let part = MountSource::Filesystem {
        filesystem: 0,
        root: at(b"/sub"),
    };
    let outside = MountSource::Path {
        path: at(b"/etc/hosts"),
        directory: false,
    };
    let proc = MountSource::Filesystem {
        filesystem: 1,
        root: at(b"/"),
    };
    let kept = |kind, number| MountSource::Namespace { kind, number };
    let other = MountSource::Filesystem {
        filesystem: 2,
        root: at(b"/"),
    };
    let further = MountNamespaceRecord {
        owner: 2,
        unmounted: Vec::new(),
        mounts: vec![
            MountRecord {
                master: 4,
                ..mount(0, b"/", MountSource::Inherited)
            },
            mount(0, b"/proc", other),
            MountRecord {
                locked: true,
                ..mount(
                    0,
                    b"/sys/fs/cgroup",
                    MountSource::Cgroup {
                        place: place("", b"work"),
                        source: b"none".to_vec(),
                    },
                )
            },
        ],
    };
    let own = MountNamespaceRecord {
        owner: 0,
        unmounted: vec![at(b"/proc"), at(b"/sys")],
        mounts: vec![
            mount(0, b"/", MountSource::Inherited),
            MountRecord {
                shared: 4,
                ..mount(0, b"/mnt", root)
            },
            MountRecord {
                master: 4,
                attributes: Some(0x20_0011),
                ..mount(1, b"/mnt/sub", part)
            },
            mount(0, b"/srv/\xff hosts", outside),
            MountRecord {
                unbindable: true,
                ..mount(0, b"/proc", proc)
            },
            mount(1, b"/mnt/space", kept(NamespaceKind::Mount, 1)),
            mount(1, b"/mnt/names", kept(NamespaceKind::Uts, 3)),
        ],
    };
    vec![own, further]
}

fn node(parent: u32, name: &[u8], kind: NodeKind) -> NodeRecord {
    NodeRecord {
        parent,
        name: name.to_vec(),
        kind,
        mode: 0o640,
        uid: 1000,
        gid: 5,
        times: [-1, 1_600_000_000_000_000_001],
        attributes: Vec::new(),
    }
}

/// Filesystems that are made anew.
pub fn filesystems() -> Vec<FilesystemRecord> {
    let option = |key: &str, value: Option<&[u8]>| FilesystemOption {
        key: key.to_owned(),
        value: value.map(<[u8]>::to_vec),
    };
    let target = b"../file".to_vec();
    let device = NodeKind::Device {
        block: false,
        number: 0x103,
    };
    vec![
        FilesystemRecord {
            id: 0,
            kind: FilesystemKind::Tmpfs,
            source: b"none".to_vec(),
            options: vec![option("size", Some(b"1024k")), option("inode64", None)],
            pid_namespace: 0,
            ipc_namespace: 0,
            read_only: true,
            nodes: vec![
                node(0, b"", NodeKind::Directory),
                node(0, b"sub", NodeKind::Directory),
                NodeRecord {
                    attributes: vec![ExtendedAttribute {
                        name: b"trusted.a".to_vec(),
                        value: b"\0b".to_vec(),
                    }],
                    ..node(0, b"file", NodeKind::File { size: 5000 })
                },
                node(1, b"link", NodeKind::Symlink { target }),
                node(1, b"again", NodeKind::Link { to: 2 }),
                node(1, b"fifo", NodeKind::Fifo),
                node(1, b"socket", NodeKind::Socket),
                node(1, b"\xff", device),
            ],
        },
        FilesystemRecord {
            id: 1,
            kind: FilesystemKind::Proc,
            source: b"proc".to_vec(),
            options: vec![option("hidepid", Some(b"invisible"))],
            pid_namespace: 0,
            ipc_namespace: 0,
            read_only: false,
            nodes: Vec::new(),
        },
        FilesystemRecord {
            id: 2,
            kind: FilesystemKind::Proc,
            source: b"proc".to_vec(),
            options: Vec::new(),
            pid_namespace: 1,
            ipc_namespace: 0,
            read_only: false,
            nodes: Vec::new(),
        },
    ]
}
