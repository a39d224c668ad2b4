//! Cgroups of the [`whole`](super::whole) image: two of version 2 below the tree's own, and limits of version 1.

use floe_image::record::{CgroupAccess, CgroupPlace, CgroupRecord, ExtendedAttribute, HierarchyRecord, NsPid};

pub fn cgroups() -> Vec<HierarchyRecord> {
    let root = CgroupAccess {
        uid: 0,
        gid: 0,
        mode: 0o755,
    };
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let below = CgroupRecord {
        path: b"work".to_vec(),
        access: CgroupAccess {
            uid: 1000,
            gid: 1000,
            mode: 0o750,
        },
        files: vec![(
            "cgroup.procs".to_owned(),
            CgroupAccess {
                uid: 1000,
                gid: 100,
                mode: 0o664,
            },
        )],
        attributes: vec![ExtendedAttribute {
            name: b"user.note".to_vec(),
            value: vec![1, 0, 255],
        }],
        hands_on: vec!["pids".to_owned()],
        ..CgroupRecord::default()
    };
    let deepest = CgroupRecord {
        path: b"work/caf\xc3\xa9".to_vec(),
        access: root,
        threaded: true,
        frozen: true,
        settings: vec![setting("pids.max", "7")],
        ..CgroupRecord::default()
    };
    let own = CgroupRecord {
        access: root,
        ..CgroupRecord::default()
    };
    vec![
        HierarchyRecord {
            controllers: String::new(),
            cgroups: vec![own.clone(), below, deepest],
            members: vec![(NsPid(1), 1), (NsPid(4), 2)],
        },
        HierarchyRecord {
            controllers: "cpu,cpuacct".to_owned(),
            cgroups: vec![CgroupRecord {
                settings: vec![setting("cpu.cfs_quota_us", "50000"), setting("cpu.shares", "512")],
                ..own
            }],
            members: Vec::new(),
        },
    ]
}

pub fn place(hierarchy: &str, path: &[u8]) -> CgroupPlace {
    CgroupPlace {
        hierarchy: hierarchy.to_owned(),
        path: path.to_vec(),
    }
}
