//! Trees no machine could be put into by hand, run through a model of the kernel's rules for sessions, groups and
//! orphans.

use super::{
    PlanError, Step,
    model::{Model, Stand},
};
use floe_image::{
    Numbering,
    record::{
        DirectoryRecord, IntervalTimer, NsPid, PidNamespaceRecord, PidsOfChildren, ProcessRecord, ProcessState,
        ProcessSwitches, ThreadRecord,
    },
};
use std::collections::{BTreeMap, BTreeSet};

fn process(pid: i32, ppid: i32, pgid: i32, sid: i32) -> ProcessRecord {
    ProcessRecord {
        pid: NsPid(pid),
        ppid: NsPid(ppid),
        pgid: NsPid(pgid),
        sid: NsPid(sid),
        pid_namespace: 0,
        pids_of_children: PidsOfChildren::Known(0),
        mount_namespace: 0,
        time_of_children: 0,
        state: ProcessState::Alive,
        threads: vec![],
        actions: vec![],
        pending: vec![],
        limits: vec![],
        umask: 0,
        cwd: DirectoryRecord::default(),
        root: DirectoryRecord::default(),
        timers: [IntervalTimer::default(); 3],
        personality: 0,
        dumpable: 1,
        subreaper: false,
        thp_disable: false,
        oom_score_adj: 0,
        coredump_filter: 0,
        exit_signal: 17,
        terminal: None,
        no_terminal: false,
        membarrier: 0,
        shared: 0,
        leader_ended: None,
        posix_timers: Vec::new(),
        switches: ProcessSwitches::default(),
    }
}

/// Plans a tree of one PID namespace.
fn plan(processes: &[ProcessRecord], has_init: bool) -> Result<Vec<Step>, PlanError> {
    super::plan(
        processes,
        (has_init, &Numbering::new(&[], &[], processes)),
        &BTreeSet::new(),
    )
}

/// Carries out steps as a kernel would.
fn run(steps: &[Step], numbering: &Numbering) -> BTreeMap<i32, Stand> {
    Model::run(steps, numbering).expect("possible steps").processes
}

fn check(processes: &[ProcessRecord]) {
    check_below(processes, &[]);
}

/// A tree with PID namespaces below its own, each below the one told.
fn check_below(processes: &[ProcessRecord], parents: &[u32]) {
    let namespaces: Vec<_> = parents
        .iter()
        .map(|parent| PidNamespaceRecord {
            parent: *parent,
            owner: 0,
            ended: false,
        })
        .collect();
    let numbering = Numbering::new(&namespaces, &[], processes);
    let steps = super::plan(processes, (true, &numbering), &BTreeSet::new()).expect("a plan");
    let world = run(&steps, &numbering);
    assert_eq!(world.len(), processes.len(), "{steps:?}");
    for process in processes {
        let got = &world[&process.pid.0];
        let zombie = matches!(process.state, ProcessState::Zombie { .. });
        let is_first = process.pid.0 == 1 || numbering.own(process.pid.0) == 1;
        let wanted = Stand {
            parent: process.ppid.0,
            session: process.sid.0,
            group: process.pgid.0,
            zombie,
            reaper: process.subreaper || is_first,
            namespace: process.pid_namespace,
        };
        assert_eq!(*got, wanted, "process {} after {steps:?}", process.pid);
    }
}

/// A process in a PID namespace below the tree's, with its ids on the levels down to that.
fn inside(mut record: ProcessRecord, namespace: u32, ids: &[i32]) -> ProcessRecord {
    record.pid_namespace = namespace;
    record.threads = vec![ThreadRecord {
        tid: record.pid,
        inner: ids.iter().copied().map(NsPid).collect(),
        ..ThreadRecord::default()
    }];
    record
}

fn zombie(mut record: ProcessRecord) -> ProcessRecord {
    record.state = ProcessState::Zombie { status: 0 };
    record
}

fn subreaper(mut record: ProcessRecord) -> ProcessRecord {
    record.subreaper = true;
    record
}

#[test]
fn a_shell_with_a_pipeline() {
    check(&[
        process(1, 0, 1, 1),
        process(7, 1, 7, 7),
        process(9, 7, 9, 7),
        process(10, 7, 9, 7),
    ]);
}

#[test]
fn a_child_in_the_session_its_parent_left() {
    check(&[process(1, 0, 1, 1), process(5, 1, 5, 5), process(6, 5, 1, 1)]);
}

#[test]
fn two_generations_in_the_older_session() {
    check(&[
        process(1, 0, 1, 1),
        process(5, 1, 5, 5),
        process(6, 5, 6, 6),
        process(7, 6, 1, 1),
    ]);
}

#[test]
fn a_daemon_whose_leader_is_dead() {
    check(&[process(1, 0, 1, 1), process(30, 1, 29, 29), process(31, 30, 31, 29)]);
}

#[test]
fn an_orphan_of_a_living_session() {
    check(&[process(1, 0, 1, 1), process(10, 1, 10, 10), process(12, 1, 10, 10)]);
}

#[test]
fn an_orphan_of_a_zombie_leader() {
    check(&[
        process(1, 0, 1, 1),
        zombie(process(10, 1, 10, 10)),
        process(12, 1, 10, 10),
    ]);
}

#[test]
fn a_group_whose_leader_is_dead() {
    check(&[process(1, 0, 1, 1), process(4, 1, 3, 1), process(5, 1, 3, 1)]);
}

#[test]
fn a_subreaper_with_an_adopted_child() {
    check(&[
        process(1, 0, 1, 1),
        subreaper(process(4, 1, 4, 4)),
        process(9, 4, 8, 8),
        process(10, 1, 7, 7),
    ]);
}

#[test]
fn an_adopted_leader_with_a_child_of_an_older_session() {
    check(&[process(1, 0, 1, 1), process(20, 1, 20, 20), process(21, 20, 11, 11)]);
}

#[test]
fn a_member_of_its_sessions_own_group_with_a_parent_in_another() {
    check(&[
        process(1, 0, 1, 1),
        process(5, 1, 5, 5),
        process(6, 5, 6, 5),
        process(7, 6, 5, 5),
    ]);
}

#[test]
fn a_tree_without_its_own_init() {
    let mut root = process(500, 0, 500, 500);
    root.ppid = NsPid(0);
    let steps = plan(&[root, process(501, 500, 500, 500)], false).expect("a plan");
    let world = run(&steps, &Numbering::new(&[], &[], &[]));
    assert_eq!(
        (world[&500].parent, world[&500].session, world[&501].parent),
        (1, 500, 500)
    );
}

#[test]
fn impossible_sessions_are_an_error() {
    let error = plan(&[process(1, 0, 1, 1), process(5, 1, 1, 1), process(6, 5, 9, 9)], true);
    assert_eq!(
        error,
        Err(PlanError::Session {
            pid: 6,
            session: 9,
            parent: 5
        })
    );
    assert_eq!(plan(&[process(5, 0, 5, 5)], true), Err(PlanError::NoRoot));
    assert_eq!(
        plan(&[process(1, 0, 1, 1), process(6, 7, 6, 6)], true),
        Err(PlanError::Unreachable(6))
    );
}

#[test]
fn a_chain_of_ten_thousand_is_no_recursion() {
    let mut chain = vec![process(1, 0, 1, 1)];
    chain.extend((2..10_000).map(|pid| process(pid, pid - 1, 1, 1)));
    assert!(plan(&chain, true).expect("a plan").len() > 10_000);
}

#[test]
fn namespaces_below_each_other() {
    check_below(
        &[
            process(1, 0, 1, 1),
            process(5, 1, 5, 5),
            inside(process(6, 5, 5, 5), 1, &[1]),
            inside(process(7, 6, 7, 7), 1, &[2]),
            inside(process(8, 7, 8, 7), 2, &[3, 1]),
            inside(process(9, 8, 8, 7), 2, &[4, 2]),
            inside(process(10, 9, 10, 10), 2, &[5, 3]),
        ],
        &[0, 1],
    );
}

#[test]
fn who_does_not_see_the_group_is_born_into_it() {
    check_below(
        &[
            process(1, 0, 1, 1),
            process(4, 1, 4, 1),
            process(5, 4, 4, 1),
            inside(process(6, 5, 4, 1), 1, &[1]),
            inside(process(7, 6, 4, 1), 1, &[2]),
        ],
        &[0],
    );
}

#[test]
fn a_pipeline_whose_second_is_a_namespaces_first() {
    check_below(
        &[
            process(1, 0, 1, 1),
            process(4, 1, 4, 1),
            inside(process(5, 1, 4, 1), 1, &[1]),
        ],
        &[0],
    );
    // Its leader came later, so its parent has to put it there.
    check_below(
        &[
            process(1, 0, 1, 1),
            inside(process(4, 1, 5, 1), 1, &[1]),
            process(5, 1, 5, 1),
        ],
        &[0],
    );
}

#[test]
fn who_enters_a_namespace_comes_after_its_first() {
    check_below(
        &[
            process(1, 0, 1, 1),
            process(3, 1, 3, 3),
            inside(process(4, 3, 4, 3), 1, &[7]),
            process(5, 1, 5, 5),
            inside(process(6, 5, 6, 6), 1, &[1]),
        ],
        &[0],
    );
}

#[test]
fn orphans_stay_in_their_namespace() {
    check_below(
        &[
            process(1, 0, 1, 1),
            inside(process(5, 1, 5, 5), 1, &[1]),
            inside(process(8, 5, 8, 7), 1, &[4]),
            inside(process(9, 5, 9, 5), 1, &[5]),
            inside(subreaper(process(10, 5, 10, 10)), 1, &[6]),
            inside(process(12, 10, 12, 11), 1, &[8]),
        ],
        &[0],
    );
}

#[test]
fn an_orphan_of_a_session_above() {
    check_below(
        &[
            process(1, 0, 1, 1),
            process(3, 1, 3, 3),
            inside(process(5, 1, 5, 5), 1, &[1]),
            inside(process(6, 5, 6, 3), 1, &[2]),
        ],
        &[0],
    );
}

#[test]
fn impossible_namespaces_are_an_error() {
    let namespaces = [0, 0].map(|parent| PidNamespaceRecord {
        parent,
        owner: 0,
        ended: false,
    });
    let tree = [
        process(1, 0, 1, 1),
        inside(process(5, 1, 5, 5), 1, &[1]),
        inside(process(6, 5, 6, 6), 2, &[1]),
    ];
    let numbering = Numbering::new(&namespaces, &[], &tree);
    let error = super::plan(&tree, (true, &numbering), &BTreeSet::new());
    assert_eq!(error, Err(PlanError::Namespace { pid: 6, by: 5 }));
}
