//! Images whose records contradict each other: each ends in one clear error.

use crate::{
    sample::{self, Sample},
    shared::{open, refusal, written},
};
use floe_image::record::*;

pub fn contradiction(text: &str, change: impl FnOnce(&mut Sample)) {
    let mut sample = sample::whole();
    change(&mut sample);
    assert_eq!(
        refusal(&written(&sample)),
        format!("the image contradicts itself: {text}")
    );
}

#[test]
fn pid_namespaces_that_are_none_are_refused() {
    let no_level = "PID namespace 1 is not below an earlier one, or is on a level that does not exist";
    contradiction(no_level, |s| s.sandbox.pid_namespaces[0].parent = 1);
    contradiction(
        "PID namespace 33 is not below an earlier one, or is on a level that does not exist",
        |s| {
            let record = |parent| PidNamespaceRecord {
                parent,
                owner: 0,
                ended: false,
            };
            s.sandbox.pid_namespaces = (0..40).map(record).collect();
        },
    );
    for missing in [2, 3] {
        contradiction(&format!("filesystem 1 can't show PID namespace {missing}"), |s| {
            s.filesystems[1].pid_namespace = missing;
        });
    }
    // The second one has ended.
    let ended = "PID namespace 2 can't be there any more as its PID 1 ended, or has ended";
    contradiction(ended, |s| s.processes[1].pid_namespace = 2);
    contradiction(ended, |s| {
        let below = PidNamespaceRecord {
            parent: 2,
            ..s.sandbox.pid_namespaces[1]
        };
        s.sandbox.pid_namespaces.push(below);
    });
    contradiction("filesystem 0 can't show PID namespace 1", |s| {
        s.filesystems[0].pid_namespace = 1;
    });
    contradiction("task 7 is in PID namespace 3, which the image lacks", |s| {
        s.processes[1].pid_namespace = 3;
    });
    contradiction("task 9 has ids in 2 PID namespaces below the tree's, not 1", |s| {
        s.processes[1].threads[1].inner.push(NsPid(3));
    });
    contradiction("1 can't be the id of task 9 in PID namespace 1", |s| {
        s.processes[1].threads[1].inner[0] = NsPid(1);
    });
    contradiction("0 can't be the id of task 30 in PID namespace 1", |s| {
        s.sandbox.ended_leaders[0].inner[0] = NsPid(0);
    });
    contradiction("PID namespace 1 has no process that is its PID 1", |s| {
        s.processes[1].threads[0].inner[0] = NsPid(77);
    });
    contradiction("process 8 is in a PID namespace that is not below its parent's", |s| {
        s.processes[2].pid_namespace = 0;
        s.processes[2].threads[0].inner.clear();
    });
    contradiction(
        "children of process 7 would be in a PID namespace that is not below its own",
        |s| s.processes[1].pids_of_children = PidsOfChildren::Known(0),
    );
}

#[test]
fn paths_of_mount_namespaces_that_are_not_there_are_refused() {
    contradiction("process 7 is in mount namespace 2, which is missing", |s| {
        s.processes[1].mount_namespace = 2;
    });
    contradiction("process 1 is in mount namespace 2, which is missing", |s| {
        s.processes[0].cwd.mount_namespace = 2;
    });
    contradiction("mapped file 1 is in mount namespace 2, which is missing", |s| {
        s.mapped_files[1].mount_namespace = 2;
    });
    contradiction("deleted file 0 is in mount namespace 2, which is missing", |s| {
        s.ghosts[0].mount_namespace = 2;
    });
    contradiction("open file 3 is in mount namespace 2, which is missing", |s| {
        s.open_files[3].mount_namespace = 2;
    });
}

#[test]
fn namespaces_that_are_none_are_refused() {
    let user = |s: &mut Sample, change: fn(&mut UserNamespaceRecord)| {
        let NamespaceContents::User(user) = &mut s.sandbox.namespaces[0].contents else {
            panic!("the first is a user namespace");
        };
        change(user);
    };
    let no_owner = "belongs to no user namespace before it, or is on a level that does not exist";
    contradiction(&format!("namespace 1 {no_owner}"), |s| {
        s.sandbox.namespaces[0].owner = 1;
    });
    contradiction(&format!("namespace 3 {no_owner}"), |s| {
        s.sandbox.namespaces[2].owner = 3;
    });
    contradiction(&format!("namespace 33 {no_owner}"), |s| {
        let record = |owner| NamespaceRecord {
            owner,
            contents: NamespaceContents::User(UserNamespaceRecord::default()),
        };
        s.sandbox.namespaces = (0..40).map(record).collect();
    });
    contradiction("user namespace 4 does not come before those of other kinds", |s| {
        let late = s.sandbox.namespaces.remove(1);
        s.sandbox.namespaces[2].owner = 1;
        s.sandbox.namespaces.insert(3, late);
    });
    let no_map = "user namespace 1 has a map that can't have been written";
    contradiction(no_map, |s| user(s, |user| user.users[0].count = 0));
    contradiction(no_map, |s| user(s, |user| user.users[0].count = 6));
    contradiction(no_map, |s| {
        user(s, |user| (user.groups[0].above, user.groups[0].count) = (u32::MAX, 2));
    });
    contradiction(no_map, |s| user(s, |user| user.groups = vec![user.groups[0]; 341]));
    let components = |s: &mut Sample, change: fn(&mut Vec<ComponentRecord>)| {
        change(&mut s.machine.as_mut().expect("a machine").components);
    };
    let nowhere = "component 2 of its extended registers stands nowhere, or where another one does";
    contradiction(nowhere, |s| components(s, |all| all[1].offset = 583));
    contradiction(nowhere, |s| components(s, |all| all[1].bytes = 17));
    contradiction(nowhere, |s| components(s, |all| all[0].number = 2));
    contradiction("its vDSO has 65537 bytes", |s| {
        s.machine.as_mut().expect("a machine").vdso = vec![0; 65_537];
    });
    let no_owner = "the user namespace that the tree was in can't be one";
    let owner = |s: &mut Sample, change: fn(&mut UserNamespaceRecord)| {
        change(&mut s.owner.as_mut().expect("an owner").namespace);
    };
    contradiction(no_owner, |s| owner(s, |user| user.maker.0 = u32::MAX));
    contradiction(no_owner, |s| owner(s, |user| user.maker.1 = u32::MAX));
    contradiction(no_owner, |s| owner(s, |user| user.users[0].count = 0));
    contradiction(no_owner, |s| owner(s, |user| user.groups = vec![user.groups[0]; 2]));
    contradiction("UTS namespace 3 has a name of more than 64 bytes", |s| {
        let names = (vec![b'x'; 65], Vec::new());
        s.sandbox.namespaces[2].contents = NamespaceContents::Uts {
            host: names.0,
            domain: names.1,
        };
    });
    let owner = "namespace 5 belongs to no user namespace before it, or is on a level that does not exist";
    // A process leads its children there.
    contradiction(owner, |s| s.sandbox.namespaces[4].owner = 1);
    contradiction("the clocks of time namespace 5 show a time too late", |s| {
        s.sandbox.namespaces[4].contents = NamespaceContents::Time(ClocksRecord {
            monotonic: u64::MAX,
            boottime: 0,
        });
    });
    contradiction("task 7 is in network namespace 7, which the image lacks", |s| {
        s.processes[1].threads[0].namespaces.network = 7;
    });
    contradiction("task 7 is in cgroup namespace 6, which the image lacks", |s| {
        s.processes[1].threads[0].namespaces.cgroup = 6;
    });
    let nowhere =
        "cgroup namespace 7 begins at a cgroup that is missing, that has threads alone, or that every tree has";
    for path in [&b""[..], b"work/caf\xc3\xa9", b"..", b"works"] {
        contradiction(nowhere, |s| {
            let place = CgroupPlace {
                hierarchy: String::new(),
                path: path.to_vec(),
            };
            s.sandbox.namespaces[6].contents = NamespaceContents::Cgroup(vec![place]);
        });
    }
    contradiction(nowhere, |s| {
        let NamespaceContents::Cgroup(places) = &mut s.sandbox.namespaces[6].contents else {
            return;
        };
        let again = places[0].clone();
        places.push(again);
    });
    let mounted = |hierarchy: &str, path: &[u8], source: &[u8]| {
        let source = MountSource::Cgroup {
            place: CgroupPlace {
                hierarchy: hierarchy.to_owned(),
                path: path.to_vec(),
            },
            source: source.to_vec(),
        };
        move |s: &mut Sample| s.mount_namespaces[1].mounts[2].source = source
    };
    let nothing = "mount 2 of mount namespace 1 shows a cgroup that is missing, or that has threads alone";
    contradiction(nothing, mounted("pids", b"", b""));
    contradiction(nothing, mounted("", b"..", b""));
    contradiction(nothing, mounted("", b"work/caf\xc3\xa9", b""));
    contradiction(
        "mount 2 of mount namespace 1 can't have been made of what it says",
        mounted("", b"", b"a\0b"),
    );
    contradiction("task 1 is in user namespace 3, which the image lacks", |s| {
        s.processes[0].threads[0].namespaces.user = 3;
    });
    contradiction("task 1 is in time namespace 6, which the image lacks", |s| {
        s.processes[0].time_of_children = 6;
    });
    let not_made = "are in a time namespace that it can't have made";
    contradiction(&format!("children of process 7 {not_made}"), |s| {
        s.processes[1].time_of_children = 0;
    });
    contradiction(&format!("children of process 7 {not_made}"), |s| {
        s.processes[0].time_of_children = 5;
        for thread in &mut s.processes[1].threads {
            thread.namespaces.time = 0;
        }
    });
    contradiction("process 1, the tree's root, is in namespaces of others", |s| {
        s.processes[0].threads[0].namespaces.uts = 3;
    });
    contradiction("threads of process 7 are in different user or time namespaces", |s| {
        s.processes[1].threads[1].namespaces.user = 1;
    });
    contradiction(
        "mount namespace 1 belongs to no user namespace that the image has",
        |s| {
            s.mount_namespaces[1].owner = 3;
        },
    );
    contradiction(
        "mount namespace 0 belongs to no user namespace that the image has",
        |s| {
            s.mount_namespaces[0].owner = 1;
        },
    );
    contradiction("PID namespace 1 belongs to no user namespace that the image has", |s| {
        s.sandbox.pid_namespaces[0].owner = 3;
    });
}

#[test]
fn settings_that_floe_does_not_carry_are_refused() {
    let set = |index: usize, name: &'static str| move |s: &mut Sample| s.sandbox.sysctls[index].name = name.to_owned();
    contradiction(
        "sysctl kernel.core_pattern is none that is carried",
        set(0, "kernel/core_pattern"),
    );
    contradiction(
        "sysctl kernel....net.ipv4.ip_forward is none that is carried",
        set(0, "kernel/../net/ipv4/ip_forward"),
    );
    contradiction("sysctl kernel.sem is none that is carried", set(2, "kernel/sem"));
    for value in ["", "1 ", "x", "1\n2", &"1 ".repeat(100)] {
        contradiction("sysctl kernel.pid_max has no numbers as its value", |s| {
            value.clone_into(&mut s.sandbox.sysctls[2].value);
        });
    }
    contradiction("sysctl kernel.pid_max is of a namespace that is not there", |s| {
        s.sandbox.sysctls[2].namespace = 2;
    });
    contradiction("sysctl kernel.pid_max is of a namespace that is not there", |s| {
        s.sandbox.sysctls[2].namespace = 3;
    });
    contradiction(
        "sysctl user.max_ipc_namespaces is of a namespace that is not there",
        |s| {
            s.sandbox.sysctls[3].namespace = 3;
        },
    );
    contradiction("sysctl kernel.sem is of a namespace that is not there", |s| {
        s.sandbox.sysctls[1].namespace = 3;
    });
    contradiction("sysctl kernel.sem is there twice", |s| {
        let again = s.sandbox.sysctls[0].clone();
        s.sandbox.sysctls.push(again);
    });
}

#[test]
fn trees_that_are_none_are_refused() {
    contradiction("process 7 is its own ancestor", |s| {
        s.processes[1].ppid = NsPid(7);
        s.processes.truncate(2);
    });
    contradiction("the parent of process 8, 99, is missing", |s| {
        s.processes[2].ppid = NsPid(99);
    });
    contradiction("2 processes have no parent, exactly one must", |s| {
        s.processes[1].ppid = NsPid(0);
    });
    contradiction("0 processes have no parent, exactly one must", |s| {
        s.processes[0].ppid = NsPid(8);
    });
    contradiction("two tasks have the id 7", |s| s.processes[0].threads[1].tid = NsPid(7));
    contradiction("0 is not a possible id of a task", |s| {
        s.processes[2].threads[0].tid = NsPid(0);
    });
    contradiction("4194304 is not a possible id of a task", |s| {
        s.processes[1].threads[1].tid = NsPid(1 << 22);
    });
    contradiction("the first thread of process 7 is not its leader", |s| {
        s.processes[1].threads.reverse();
    });
    contradiction("the first thread of process 1 is not its leader", |s| {
        s.processes[0].threads.clear();
    });
    contradiction("process 7 has no process group or no session", |s| {
        s.processes[1].sid = NsPid(0);
    });
    contradiction("process 8 is a zombie and has 2 threads", |s| {
        let mut thread = s.processes[2].threads[0].clone();
        thread.tid = NsPid(30);
        s.processes[2].threads.push(thread);
    });
    for state in [
        ProcessState::Zombie { status: 0x137f },
        ProcessState::Zombie { status: 0x1_0000 },
        ProcessState::Stopped {
            signal: 9,
            reported: false,
        },
    ] {
        contradiction("process 8 ended or stopped in an impossible way", |s| {
            s.processes[2].state = state;
        });
    }
    for shared in [1, 0x800, 0x1_0100] {
        contradiction("process 7 can't share what it shares with its parent", |s| {
            s.processes[1].shared = shared;
        });
    }
    contradiction("process 1 can't share what it shares with its parent", |s| {
        s.processes[0].shared = 0x200;
    });
    for status in [9, 0x1_0000] {
        contradiction("process 7 ended or stopped in an impossible way", |s| {
            s.processes[1].leader_ended = Some(status);
        });
    }
    contradiction(
        "the root process is 1, and the sandbox record says that PID 1 is not part of the tree",
        |s| s.sandbox.has_init = false,
    );
    contradiction("process 1 has 63 signal actions, not 64", |s| {
        s.processes[0].actions.truncate(63);
    });
    contradiction("process 1 has 0 resource limits, not 16", |s| {
        s.processes[0].limits.clear();
    });
    contradiction("the working directory of process 7 is not a path", |s| {
        s.processes[1].cwd.path.clear();
    });
    contradiction("the root directory of process 7 is not a path", |s| {
        s.processes[1].root.path = vec![b'/'; 4096];
    });
    contradiction("8 bytes of general registers of task 9, not 216", |s| {
        s.processes[1].threads[1].registers.general.truncate(8);
    });
    contradiction("64 bytes of extended registers of task 1, more than 63", |s| {
        s.header.xstate_size = 63;
    });
    for name in [&b"sixteen bytes..."[..], b"nul\0"] {
        contradiction("the name of task 4 is longer than 15 bytes or holds a NUL", |s| {
            s.processes[0].threads[1].comm = name.to_vec();
        });
    }
    contradiction(
        "1 bytes of information about a pending signal of task 4, not 128",
        |s| {
            s.processes[0].threads[1].pending[0].truncate(1);
        },
    );
    contradiction("its pages have 16384 bytes, not 4096", |s| s.header.page_size = 16384);
}

#[test]
fn clocks_and_timers_that_can_not_be_are_refused() {
    let late = i64::MAX as u64 / 2 + 1;
    contradiction(&format!("a clock shows {late} ns"), |s| {
        s.sandbox.clocks.boottime = late;
    });
    contradiction("the timer ids of process 7 do not ascend", |s| {
        s.processes[1].posix_timers.swap(1, 2);
    });
    contradiction("the timer ids of process 7 do not ascend", |s| {
        s.processes[1].posix_timers[0].id = -1;
    });
    contradiction("timer 3 of process 7 belongs to thread 4, which is missing", |s| {
        s.processes[1].posix_timers[1].maker = NsPid(4);
    });
    contradiction("timer 7 of process 7 belongs to thread 0, which is missing", |s| {
        s.processes[1].posix_timers[2].target = NsPid(0);
    });
    for (notify, signal, target) in [(3, 34, 0), (5, 34, 9), (0, 0, 0), (0, 34, 9), (4, 65, 9), (1, 0, 9)] {
        contradiction("timer 0 of process 7 tells nobody of its end in a possible way", |s| {
            let timer = &mut s.processes[1].posix_timers[0];
            (timer.notify, timer.signal, timer.target) = (notify, signal, NsPid(target));
        });
    }
}

#[test]
fn switches_that_no_task_has_are_refused() {
    contradiction("task 1 has seccomp filters in strict mode", |s| {
        s.processes[0].threads[0].seccomp.filters = s.processes[1].threads[0].seccomp.filters.clone();
    });
    for length in [0, 7, 8 * 4097] {
        contradiction(
            &format!("a seccomp filter of task 7 has {length} bytes, not 1 to 4096 instructions of 8"),
            |s| s.processes[1].threads[0].seccomp.filters[1].program = vec![6; length],
        );
    }
    contradiction(
        "the seccomp filters of task 7 are longer than a kernel takes together",
        |s| {
            let filters = &mut s.processes[1].threads[0].seccomp.filters;
            *filters = vec![filters[1].clone(); 6554];
        },
    );
    contradiction("the memory policy of task 7 can't be what it is", |s| {
        let policy = s.processes[1].threads[0].switches.memory_policy.as_mut();
        policy.expect("it has one").nodes = vec![1; 17];
    });
    contradiction("the speculation control of task 7 can't be what it is", |s| {
        s.processes[1].threads[0].switches.speculation = vec![(0, 4); 4];
    });
    contradiction("the machine check policy of task 7 can't be what it is", |s| {
        s.processes[1].threads[0].switches.machine_check = Some(2);
    });
    contradiction("the rule on executable memory of task 7 can't be what it is", |s| {
        s.processes[1].switches.deny_write_execute = 4;
    });
    contradiction("the nice value of the session of task 1 can't be what it is", |s| {
        s.processes[0].switches.autogroup_nice = Some(20);
    });
}

#[test]
fn a_long_chain_of_parents_is_checked_in_linear_time() {
    let mut sample = sample::tiny();
    let first = sample.processes[0].clone();
    for pid in (2..20_000).rev() {
        let mut process = first.clone();
        process.pid = NsPid(pid);
        process.ppid = NsPid(pid - 1);
        process.threads[0].tid = NsPid(pid);
        process.state = ProcessState::Zombie { status: 0 };
        process.actions = Vec::new();
        process.limits = Vec::new();
        sample.processes.push(process);
    }
    assert_eq!(open(&written(&sample)).expect("open").processes().len(), 19_999);
    sample.processes[1].ppid = NsPid(19_999);
    assert!(refusal(&written(&sample)).ends_with("is its own ancestor"));
}

#[test]
fn address_spaces_that_are_none_are_refused() {
    let mapping = |text: &str, change: &dyn Fn(&mut VmaRecord)| {
        let mut sample = sample::whole();
        change(&mut sample.address_spaces[0].vmas[3]);
        let error = refusal(&written(&sample));
        assert!(
            error.starts_with("the image contradicts itself: mapping ") && error.ends_with(text),
            "{error} where {text}"
        );
    };
    mapping("does not begin and end with a page", &|vma| vma.start += 1);
    mapping("is empty", &|vma| vma.end = vma.start);
    mapping("is empty", &|vma| vma.end = 0);
    mapping("reaches beyond user space", &|vma| vma.end = 1 << 63);
    mapping("is out of order or overlaps another", &|vma| vma.start = 0x60_0000);
    mapping("has an unknown protection", &|vma| vma.prot = 8);
    mapping("has an impossible name", &|vma| vma.name = Some(b"a\0b".to_vec()));
    mapping("has an impossible name", &|vma| vma.name = Some(vec![b'n'; 80]));
    let shmem = |object, offset| move |vma: &mut VmaRecord| vma.source = VmaSource::Shmem { object, offset };
    mapping("maps something that is missing", &shmem(1, 0));
    mapping("maps something that is missing", &shmem(u32::MAX, 0));
    mapping("has an impossible offset", &shmem(0, 1));
    mapping("has an impossible offset", &shmem(0, u64::MAX - 0xfff));
    mapping("has an impossible offset", &shmem(0, i64::MAX as u64 - 0xfff));
    contradiction(
        "an address space belongs to 8, which is no living process or has one already",
        |s| {
            s.address_spaces[1].pid = NsPid(8);
        },
    );
    contradiction("the executable of process 1 is mapped file 2, which is missing", |s| {
        s.address_spaces[0].exe = 2;
    });
    contradiction("the auxiliary vector of process 1 has 15 bytes", |s| {
        s.address_spaces[0].auxv.truncate(15);
    });
    contradiction("mapped file 1 is deleted file 4, which is missing", |s| {
        s.mapped_files[1].ghost = Some(4);
    });
    contradiction("the working directory of process 7 is no deleted directory", |s| {
        s.processes[1].cwd.ghost = Some(3);
    });
    contradiction("the name of mapped file 0 is not a path", |s| {
        s.mapped_files[0].path = b"a\0b".to_vec();
    });
    contradiction("the name of deleted file 1 is not a path", |s| s.ghosts[1].path.clear());
    contradiction("deleted file 0 can't have 18446744073709551615 bytes", |s| {
        s.ghosts[0].size = u64::MAX;
    });
    contradiction("shared memory object 0 can't have 140737488355328 bytes", |s| {
        s.shmems[0].size = 1 << 47;
    });
}

#[test]
fn details_of_mappings_that_can_not_be_are_refused() {
    let mapping = |text: &str, index: usize, change: &dyn Fn(&mut VmaRecord)| {
        let mut sample = sample::whole();
        change(&mut sample.address_spaces[0].vmas[index]);
        let error = refusal(&written(&sample));
        assert!(
            error.starts_with("the image contradicts itself: mapping ") && error.ends_with(text),
            "{error} where {text}"
        );
    };
    let guards = |guards: Vec<(u64, u64)>| move |vma: &mut VmaRecord| vma.details.guards = guards.clone();
    let guard = "has an impossible guard region";
    mapping(guard, 5, &guards(vec![(0x7ff1_1000, 0x7ff1_1000)]));
    mapping(guard, 5, &guards(vec![(0x7ff1_1001, 0x7ff1_2000)]));
    mapping(guard, 5, &guards(vec![(0x7ff0_f000, 0x7ff1_2000)]));
    mapping(guard, 5, &guards(vec![(0x7ff1_2000, 0x7ff1_4000)]));
    mapping(guard, 5, &guards(vec![(0x7ff1_1000, !0xfff)]));
    mapping(
        guard,
        5,
        &guards(vec![(0x7ff1_1000, 0x7ff1_2000), (0x7ff1_1000, 0x7ff1_3000)]),
    );
    let policy = |mode, node| {
        move |vma: &mut VmaRecord| {
            vma.details.policy = Some(RangePolicy {
                mode,
                nodes: vec![node],
            });
        }
    };
    mapping("has an impossible NUMA policy", 5, &policy(8, 0));
    mapping("has an impossible NUMA policy", 5, &policy(2, 1024));
    mapping("has an impossible NUMA policy", 5, &policy(2, u32::MAX));
    let huge = |bytes| move |vma: &mut VmaRecord| vma.details.huge_page = bytes;
    mapping("can't be of huge pages", 5, &huge(4096));
    mapping("can't be of huge pages", 5, &huge(3 << 20));
    mapping("can't be of huge pages", 5, &huge(2 << 20));
    mapping("can't be of huge pages", 5, &huge(1 << 63));
    // Shared memory says itself of which pages it is.
    mapping("can't be of huge pages", 3, &|vma| {
        (vma.start, vma.end) = (0x80_0000, 0xa0_0000);
        vma.details.huge_page = 2 << 20;
    });
    let segment = |id, offset| {
        move |vma: &mut VmaRecord| {
            vma.source = VmaSource::Segment {
                namespace: 0,
                id,
                offset,
                writable: true,
            };
        }
    };
    mapping("maps something that is missing", 6, &segment(32_768, 0));
    mapping("maps something that is missing", 6, &segment(-1, 0));
    mapping("maps something that is missing", 6, &|vma| {
        vma.source = VmaSource::Segment {
            namespace: 3,
            id: 32_769,
            offset: 0,
            writable: true,
        };
    });
    mapping("has an impossible offset", 6, &segment(32_769, 0x2000));
    mapping("has an impossible offset", 6, &segment(32_769, 8));
    mapping("has an impossible offset", 6, &segment(32_769, u64::MAX - 0xfff));
    let ring = |events, head, waiting| {
        move |vma: &mut VmaRecord| {
            let event = AioEvent {
                data: 0,
                obj: 0,
                res: 0,
                res2: 0,
            };
            vma.source = VmaSource::AioRing(AioRing {
                most: 1,
                events,
                head,
                waiting: vec![event; waiting],
            });
        }
    };
    mapping("is no ring of asynchronous I/O", 7, &ring(128, 0, 0));
    mapping("is no ring of asynchronous I/O", 7, &ring(u32::MAX, 0, 0));
    mapping("is no ring of asynchronous I/O", 7, &ring(127, 127, 0));
    mapping("is no ring of asynchronous I/O", 7, &ring(100, 0, 100));
    contradiction("process 1 locks mappings to come in an unknown way", |s| {
        s.address_spaces[0].lock_future = 1;
    });
    contradiction("shared memory object 0 can't be of huge pages", |s| {
        s.shmems[0].huge_page = 2 << 20;
    });
    contradiction("deleted file 1 can't be of huge pages", |s| {
        s.ghosts[1].kind = GhostKind::Memfd(MemfdRecord {
            name: b"scratch".to_vec(),
            seals: 0,
            huge_page: 12_345,
        });
    });
}

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

#[test]
fn pages_that_can_not_be_are_refused() {
    let run = |text: &str, change: &dyn Fn(&mut PageRun)| {
        let mut sample = sample::whole();
        change(&mut sample.page_maps[0].runs[1]);
        let run = sample.page_maps[0].runs[1];
        let wanted = format!(
            "the image contradicts itself: {} pages at {:#x} of process 1 {text}",
            run.pages, run.start
        );
        assert_eq!(refusal(&written(&sample)), wanted);
    };
    run("are none", &|run| run.pages = 0);
    run("are too many", &|run| run.pages = u64::MAX);
    run("are too many", &|run| run.start = u64::MAX - 4095);
    run("do not begin with a page", &|run| run.start += 8);
    run("are out of order or overlap others", &|run| run.start = 0x40_1000);
    run("lie outside of it", &|run| run.pages = 5);
    run("lie outside of it", &|run| run.start -= 0x1000);
    // Shared memory's pages are not the process's own.
    run("lie outside of it", &|run| run.start = 0x70_0000);
    run("are not stored", &|run| run.first = PageId(9));
    run("are not stored", &|run| run.first = PageId(u64::MAX));
    let huge = |text: &str, runs: &[(u64, u64)]| {
        contradiction(text, |s| {
            let runs = runs.iter().map(|&(start, count)| HugeRun { start, count });
            s.page_maps[0].huge = runs.collect();
        });
    };
    huge("huge pages at 0x400000 of process 1 are none", &[(0x40_0000, 0)]);
    huge(
        "huge pages at 0x401000 of process 1 do not begin with a huge page",
        &[(0x40_1000, 1)],
    );
    huge(
        "huge pages at 0x400000 of process 1 are too many",
        &[(0x40_0000, u64::MAX)],
    );
    huge(
        "huge pages at 0x400000 of process 1 are out of order or overlap others",
        &[(0x40_0000, 2), (0x40_0000, 1)],
    );
    contradiction("huge pages at 0x0 of shared memory object 0 can't be", |s| {
        s.page_maps[2].huge = vec![HugeRun { start: 0, count: 1 }];
    });
    contradiction("a page map belongs to process 8, which is missing", |s| {
        s.page_maps[0].owner = ContentOwner::Process(NsPid(8));
    });
    contradiction("a page map belongs to shared memory object 1, which is missing", |s| {
        s.page_maps[2].owner = ContentOwner::Shmem(1);
    });
    contradiction("2 pages at 0x0 of deleted file 0 lie outside of it", |s| {
        s.ghosts[0].size = 4096;
    });
    contradiction("deleted file 1 has no page map", |s| s.page_maps.truncate(4));
}

#[test]
fn packet_filters_that_no_kernel_has_are_refused() {
    let table = |fault: &str| format!("table 3 of the packet filter {fault}");
    for address in [[10, 242, 3, 6], [10, 241, 3, 5]] {
        contradiction(
            &format!("the network can't be joined to the host's by the address {address:?}"),
            |s| s.sandbox.link.as_mut().expect("a link").address = address,
        );
    }
    contradiction(&table("is not behind the one before it"), |s| {
        let again = s.networks[0].filter.tables[0].clone();
        s.networks[0].filter.tables.push(again);
    });
    contradiction(&table("has no attributes of netlink"), |s| {
        s.networks[0].filter.tables[0].attributes[0] = 3;
    });
    for attributes in [vec![], vec![0; 5], vec![255, 255, 1, 0], vec![5, 0, 1, 0, 7]] {
        contradiction(&table("has a part without attributes of netlink"), |s| {
            s.networks[0].filter.tables[0].parts[2].attributes = attributes;
        });
    }
    contradiction(&table("has an element without attributes of netlink"), |s| {
        s.networks[0].filter.tables[0].parts[1].elements[0].pop();
    });
    for handle in [0, 1] {
        contradiction(&table("has parts with impossible handles"), |s| {
            s.networks[0].filter.tables[0].parts[2].handle = handle;
        });
    }
    let skipped = "between the handles of the packet filter too many are missing";
    contradiction(skipped, |s| s.networks[0].filter.tables[0].handle = 1 << 21);
    contradiction(skipped, |s| {
        s.networks[0].filter.tables[0].parts[2].handle = u64::MAX;
    });
    contradiction("tracked connection 0 has no attributes of netlink", |s| {
        s.networks[0].filter.connections[0].attributes.clear();
    });
}

#[test]
fn sets_and_legacy_tables_that_no_kernel_has_are_refused() {
    let set = |index: u16, fault: &str| format!("set {index} of the packet filter {fault}");
    contradiction(&set(2, "is not behind the one before it"), |s| {
        let again = s.networks[0].filter.sets[0].clone();
        s.networks[0].filter.sets.push(again);
    });
    contradiction(&set(u16::MAX, "is not behind the one before it"), |s| {
        let filter = &mut s.networks[0].filter;
        let all = (0..u16::MAX).map(|index| floe_image::record::IpSetRecord {
            index,
            elements: Vec::new(),
            ..filter.sets[0].clone()
        });
        let last = floe_image::record::IpSetRecord {
            index: u16::MAX,
            ..filter.sets[0].clone()
        };
        filter.sets = all.chain([last]).collect();
    });
    contradiction(&set(2, "has no attributes of netlink"), |s| {
        s.networks[0].filter.sets[0].attributes.pop();
    });
    contradiction(&set(2, "has an element without attributes of netlink"), |s| {
        s.networks[0].filter.sets[0].elements[0].clear();
    });
    contradiction(&set(2, "has an attribute twice"), |s| {
        let set = &mut s.networks[0].filter.sets[0];
        set.attributes = [&set.attributes[..], &set.attributes[..]].concat();
    });
    let hash_size = [8, 0, 18, 0x40, 0, 0, 4, 0];
    contradiction(&set(2, "has an attribute twice"), |s| {
        let set = &mut s.networks[0].filter.sets[0];
        set.attributes
            .extend([20, 0, 7, 0x80].iter().chain(&hash_size).chain(&hash_size));
    });
    contradiction(&set(2, "has an impossible hashsize"), |s| {
        let longer = [16, 0, 7, 0x80, 12, 0, 18, 0x40, 0, 0, 4, 0, 127, 0, 0, 0];
        s.networks[0].filter.sets[0].attributes.extend(longer);
    });
    // IP_TO, CIDR, PORT_TO and IP2_TO; of a type whose name is not told.
    for kind in [2, 3, 5, 22] {
        contradiction(&set(2, "has an element that is several"), |s| {
            let element = &mut s.networks[0].filter.sets[0].elements[0];
            element.extend([6, 0, kind, 0x40, 0, 1, 0, 0]);
        });
    }
    contradiction(&set(2, "has an element with an attribute twice"), |s| {
        let element = &mut s.networks[0].filter.sets[0].elements[0];
        element.extend_from_within(..);
    });
    let missing = "between the numbers of sets of the packet filters too many are missing";
    contradiction(missing, |s| s.networks[0].filter.sets[0].index = 1025);
    let table = |family: u8, fault: &str| format!("table \"raw\" of family {family} of the packet filter {fault}");
    contradiction(&table(2, "is there twice"), |s| {
        let again = s.networks[0].filter.legacy[0].clone();
        s.networks[0].filter.legacy.push(again);
    });
    contradiction(&table(7, "has impossible hooks"), |s| {
        s.networks[0].filter.legacy[0].family = 7;
    });
    contradiction(&table(2, "has impossible hooks"), |s| {
        s.networks[0].filter.legacy[0].ends.pop();
    });
    for bytes in [0, 300] {
        contradiction(&table(2, "has no whole entries"), |s| {
            s.networks[0].filter.legacy[0].entries.truncate(bytes);
        });
    }
}

#[test]
fn cgroups_that_can_not_be_are_refused() {
    for path in ["", "/", "../x", "work/..", "a//b", "elsewhere/below"] {
        contradiction("cgroup 1 of hierarchy \"\" has no possible path", |s| {
            s.sandbox.cgroups[0].cgroups[1].path = path.as_bytes().to_vec();
        });
    }
    contradiction("cgroup 0 of hierarchy \"\" has no possible path", |s| {
        s.sandbox.cgroups[0].cgroups[0].path = b"work".to_vec();
    });
    contradiction("cgroup 3 of hierarchy \"\" is there twice", |s| {
        let again = s.sandbox.cgroups[0].cgroups[1].clone();
        s.sandbox.cgroups[0].cgroups.push(again);
    });
    contradiction(
        "the cgroup hierarchy \"cpu,cpuacct\" lacks the tree's own cgroup",
        |s| s.sandbox.cgroups[1].cgroups.clear(),
    );
    contradiction(
        "cgroup 0 of hierarchy \"cpu,cpuacct\" has a file without a possible name",
        |s| {
            s.sandbox.cgroups[1].cgroups[0].settings[0].0 = "../cpu.shares".to_owned();
        },
    );
    for name in [
        "cgroup.procs",
        "cgroup.threads",
        "cgroup.kill",
        "cgroup.subtree_control",
        "cgroup.type",
    ] {
        contradiction("cgroup 2 of hierarchy \"\" sets what is no known setting", |s| {
            s.sandbox.cgroups[0].cgroups[2].settings[0].0 = name.to_owned();
        });
    }
    for name in [
        "tasks",
        "freezer.state",
        "release_agent",
        "devices.deny",
        "tomorrow.knob",
    ] {
        contradiction(
            "cgroup 0 of hierarchy \"cpu,cpuacct\" sets what is no known setting",
            |s| s.sandbox.cgroups[1].cgroups[0].settings[0].0 = name.to_owned(),
        );
    }
    contradiction("cgroup 1 of hierarchy \"\" hands on what is no controller", |s| {
        s.sandbox.cgroups[0].cgroups[1].hands_on[0] = "pids +memory".to_owned();
    });
    contradiction("cgroup 1 of hierarchy \"\" has impossible permissions", |s| {
        s.sandbox.cgroups[0].cgroups[1].access.mode = 0o10_000;
    });
    contradiction("cgroup 1 of hierarchy \"\" has an impossible attribute", |s| {
        s.sandbox.cgroups[0].cgroups[1].attributes[0].name = b"user".to_vec();
    });
    for (tid, index) in [(99, 1), (1, 3), (1, 0)] {
        contradiction(
            "the cgroup hierarchy \"\" has a member that does not live, or is nowhere",
            |s| {
                s.sandbox.cgroups[0].members = vec![(NsPid(tid), index)];
            },
        );
    }
    contradiction("the cgroup hierarchy \"\" has a member twice, or not in order", |s| {
        s.sandbox.cgroups[0].members.reverse();
    });
    contradiction(
        "the cgroup hierarchy \"cpu,cpu\" has a controller of another one",
        |s| {
            s.sandbox.cgroups[1].controllers = "cpu,cpu".to_owned();
        },
    );
    contradiction("the cgroup hierarchy \"cpu acct\" has no possible name", |s| {
        s.sandbox.cgroups[1].controllers = "cpu acct".to_owned();
    });
}
