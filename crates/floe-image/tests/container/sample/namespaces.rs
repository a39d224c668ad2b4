//! Namespaces of the images with fixed contents, their settings, and what IPC namespaces hold.

use floe_image::record::*;

pub fn sysctls() -> Vec<SysctlRecord> {
    [
        (SysctlKind::Ipc, 0, "kernel/sem", "250 32000 32 128"),
        (SysctlKind::Ipc, 4, "kernel/sem", "250 32000 32 129"),
        (SysctlKind::Pid, 1, "kernel/pid_max", "5000"),
        (SysctlKind::User, 0, "user/max_ipc_namespaces", "7"),
    ]
    .map(|(kind, namespace, name, value)| SysctlRecord {
        kind,
        namespace,
        name: name.to_owned(),
        value: value.to_owned(),
    })
    .to_vec()
}

/// A namespace of each kind, of which the first user namespace is another one's parent.
pub fn namespaces() -> Vec<NamespaceRecord> {
    let range = |inside, above, count| IdRange { inside, above, count };
    let user = |maker, users| UserNamespaceRecord {
        maker,
        users,
        groups: vec![range(0, 7, 1)],
        setgroups: false,
    };
    let record = |owner, contents| NamespaceRecord { owner, contents };
    vec![
        record(
            0,
            NamespaceContents::User(user((1000, 100), vec![range(0, 1000, 1), range(5, 2000, 7)])),
        ),
        record(1, NamespaceContents::User(user((1000, 100), Vec::new()))),
        record(
            1,
            NamespaceContents::Uts {
                host: b"floe\xff".to_vec(),
                domain: b"(none)".to_vec(),
            },
        ),
        record(2, NamespaceContents::Ipc(ipc_objects_below())),
        record(
            0,
            NamespaceContents::Time(ClocksRecord {
                monotonic: 5,
                boottime: 6,
            }),
        ),
        record(0, NamespaceContents::Network),
        record(1, NamespaceContents::Cgroup(vec![super::cgroups::place("", b"work")])),
    ]
}

pub fn ipc_objects() -> IpcRecord {
    let permission = |id, key| IpcPermission {
        id,
        key,
        mode: 0o640,
        uid: 1000,
        gid: 100,
        creator_uid: 0,
        creator_gid: 1,
    };
    IpcRecord {
        segments: vec![SegmentRecord {
            huge_page: 0,
            permission: permission(32_769, 0),
            size: 5000,
            removed: true,
            locked: false,
        }],
        semaphores: vec![SemaphoreSetRecord {
            permission: permission(2, -5),
            values: vec![0, 32_767],
        }],
        adjustments: vec![AdjustmentRecord {
            task: NsPid(1),
            set: 2,
            values: vec![-3, 0],
        }],
        queues: vec![QueueRecord {
            permission: permission(0, 0x006d_7367),
            capacity: 16_384,
            messages: vec![MessageRecord {
                kind: 7,
                text: b"not received yet".to_vec(),
            }],
        }],
        posix: vec![
            PosixQueueRecord {
                messages: vec![message(9, b"first"), message(0, b""), message(0, b"last")],
                ..posix_queue(b"jobs")
            },
            PosixQueueRecord {
                unlinked: true,
                notice: Some(NoticeRecord {
                    pid: NsPid(1),
                    signal: Some(10),
                    value: 99,
                }),
                ..posix_queue(b"jobs")
            },
        ],
    }
}

/// Those of the namespace that not all are in: the same identifiers, keys and names stand for others.
fn ipc_objects_below() -> IpcRecord {
    let IpcRecord {
        mut segments,
        mut semaphores,
        queues,
        ..
    } = ipc_objects();
    segments[0].removed = false;
    semaphores[0].values[1] = 7;
    IpcRecord {
        segments,
        semaphores,
        adjustments: vec![AdjustmentRecord {
            task: NsPid(7),
            set: 2,
            values: vec![0, 5],
        }],
        queues,
        posix: vec![posix_queue(b"jobs")],
    }
}

fn posix_queue(name: &[u8]) -> PosixQueueRecord {
    PosixQueueRecord {
        name: name.to_vec(),
        unlinked: false,
        mode: 0o620,
        uid: 1000,
        gid: 100,
        most_messages: 10,
        message_bytes: 64,
        messages: Vec::new(),
        notice: None,
    }
}

fn message(priority: u32, text: &[u8]) -> PosixMessageRecord {
    PosixMessageRecord {
        priority,
        text: text.to_vec(),
    }
}
