//! Namespaces and their settings, and cgroups.

use super::contradiction;
use crate::sample::Sample;
use floe_image::record::*;

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
