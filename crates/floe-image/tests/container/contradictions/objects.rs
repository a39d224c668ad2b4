//! Objects of IPC, and descriptors.

use super::contradiction;
use crate::sample;
use floe_image::record::*;

#[test]
fn posix_message_queues_that_are_none_are_refused() {
    for name in ["", "..", "a/b", "a\0", &"long".repeat(64)] {
        contradiction("POSIX message queue 0 has an impossible name", |s| {
            s.sandbox.ipc_objects.posix[0].name = name.as_bytes().to_vec();
        });
    }
    contradiction("POSIX message queue 2 has the name of another one", |s| {
        let again = s.sandbox.ipc_objects.posix[0].clone();
        s.sandbox.ipc_objects.posix.push(again);
    });
    for (messages, bytes) in [(0, 64), (65_537, 64), (10, 0), (10, (16 << 20) + 1), (1, 64)] {
        contradiction("POSIX message queue 0 has an impossible size or mode", |s| {
            let queue = &mut s.sandbox.ipc_objects.posix[0];
            (queue.most_messages, queue.message_bytes) = (messages, bytes);
        });
    }
    contradiction("POSIX message queue 0 has a message that does not fit", |s| {
        s.sandbox.ipc_objects.posix[0].message_bytes = 3;
    });
    contradiction("POSIX message queue 0 has a message that does not fit", |s| {
        s.sandbox.ipc_objects.posix[0].messages[0].priority = 32_768;
    });
    for (pid, signal) in [(99, 10), (1, 0), (1, 65)] {
        contradiction(
            "POSIX message queue 1 tells a process that is missing, or by no signal",
            |s| {
                let notice = s.sandbox.ipc_objects.posix[1].notice.as_mut().expect("a notice");
                (notice.pid, notice.signal) = (NsPid(pid), Some(signal));
            },
        );
    }
}

#[test]
fn system_v_objects_that_are_none_are_refused() {
    contradiction("there are IPC objects, but no namespace of their own", |s| {
        s.sandbox.ipc = NamespaceOrigin::Host;
    });
    contradiction("System V shared memory 32769 is there twice, or out of order", |s| {
        let again = s.sandbox.ipc_objects.segments[0];
        s.sandbox.ipc_objects.segments.push(again);
    });
    contradiction("System V message queue -1 is there twice, or out of order", |s| {
        s.sandbox.ipc_objects.queues[0].permission.id = -1;
    });
    contradiction("System V semaphore set 2 has impossible permissions", |s| {
        s.sandbox.ipc_objects.semaphores[0].permission.mode = 0o1000;
    });
    for size in [0, 1 << 47, u64::MAX] {
        contradiction("System V shared memory 32769 has an impossible size", |s| {
            s.sandbox.ipc_objects.segments[0].size = size;
        });
    }
    contradiction("System V semaphore set 2 has no semaphores", |s| {
        s.sandbox.ipc_objects.semaphores[0].values.clear();
    });
    contradiction("System V semaphore set 2 has an impossible value", |s| {
        s.sandbox.ipc_objects.semaphores[0].values[0] = 32_768;
    });
    let adjusted = "System V semaphore set 2 is adjusted by a task that is missing or elsewhere, or in another size";
    contradiction(adjusted, |s| s.sandbox.ipc_objects.adjustments[0].task = NsPid(99));
    contradiction(adjusted, |s| s.sandbox.ipc_objects.adjustments[0].task = NsPid(7));
    contradiction(adjusted, |s| s.sandbox.ipc_objects.adjustments[0].values.push(1));
    contradiction(adjusted, |s| {
        s.sandbox.ipc_objects.adjustments[0].values[0] = i16::MIN;
    });
    contradiction("System V message queue 0 has a message of an impossible type", |s| {
        s.sandbox.ipc_objects.queues[0].messages[0].kind = 0;
    });
    contradiction(
        "a page map belongs to System V shared memory 5, which is missing",
        |s| {
            s.page_maps.last_mut().expect("a map").owner = ContentOwner::Segment { namespace: 0, id: 5 };
        },
    );
    contradiction(
        "a page map belongs to System V shared memory 32769 of namespace 3, which is missing",
        |s| {
            let owner = ContentOwner::Segment {
                namespace: 3,
                id: 32_769,
            };
            s.page_maps.last_mut().expect("a map").owner = owner;
        },
    );
    contradiction("System V shared memory 32769 of namespace 4 has no page map", |s| {
        s.page_maps.pop();
    });
    let queues = "filesystem 1 shows queues of an IPC namespace that is missing, or no queues";
    contradiction(queues, |s| s.filesystems[1].ipc_namespace = 4);
}

#[test]
fn descriptors_that_are_none_are_refused() {
    let descriptor = |text: &str, change: &dyn Fn(&mut DescriptorRecord)| {
        contradiction(text, |s| change(&mut s.descriptor_tables[0].descriptors[1]));
    };
    descriptor("descriptor -1 of process 1 is out of order", &|d| d.number = -1);
    descriptor("descriptor 0 of process 1 is out of order", &|d| d.number = 0);
    descriptor("descriptor 2 of process 1 is out of order", &|d| d.number = i32::MAX);
    let missing = sample::whole().open_files.len() as u32;
    descriptor(
        &format!("descriptor 1 of process 1 refers to open file {missing}, which is missing"),
        &|d| d.file = missing,
    );
    let notice = |number: i32, change: &dyn Fn(&mut DirectoryNotice)| {
        let text = format!("a notice through descriptor {number} of process 1 is impossible");
        contradiction(&text, |s| change(&mut s.descriptor_tables[0].notices[0]));
    };
    notice(99, &|n| n.number = 99);
    let number = sample::whole().descriptor_tables[0].notices[0].number;
    notice(number, &|n| n.events = 1 << 31);
}
