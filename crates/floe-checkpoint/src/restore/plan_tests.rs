//! Trees no machine could be put into by hand, run through a model of the kernel's rules for sessions, groups and
//! orphans.

use super::{PlanError, Step, plan};
use floe_image::record::{DirectoryRecord, IntervalTimer, NsPid, ProcessRecord, ProcessState, ProcessSwitches};
use std::collections::{BTreeMap, BTreeSet};

fn process(pid: i32, ppid: i32, pgid: i32, sid: i32) -> ProcessRecord {
    ProcessRecord {
        pid: NsPid(pid),
        ppid: NsPid(ppid),
        pgid: NsPid(pgid),
        sid: NsPid(sid),
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

#[derive(Debug, Clone, PartialEq, Eq)]
struct Modelled {
    parent: i32,
    session: i32,
    group: i32,
    zombie: bool,
    reaper: bool,
}

/// Carries out steps as a kernel would; panics where it would refuse one.
fn run(steps: &[Step]) -> BTreeMap<i32, Modelled> {
    let init = Modelled {
        parent: 0,
        session: 1,
        group: 1,
        zombie: false,
        reaper: true,
    };
    let mut world = BTreeMap::from([(1, init)]);
    for step in steps {
        match *step {
            Step::Fork { by, pid, .. } => {
                let forker = world[&by].clone();
                assert!(!forker.zombie, "{by} is dead and can't fork");
                let child = Modelled {
                    parent: by,
                    reaper: false,
                    ..forker
                };
                assert!(world.insert(pid, child).is_none(), "{pid} is taken");
            }
            Step::NewSession(pid) => {
                assert!(world[&pid].group != pid, "a group leader can't make a session");
                let node = world.get_mut(&pid).expect("alive");
                (node.session, node.group) = (pid, pid);
            }
            Step::Join { pid, group } => {
                let session = world[&pid].session;
                let fits = pid == group || world.values().any(|n| n.group == group && n.session == session);
                assert!(fits, "group {group} does not exist in session {session}");
                world.get_mut(&pid).expect("alive").group = group;
            }
            Step::Subreaper(pid) => world.get_mut(&pid).expect("alive").reaper = true,
            Step::EndHelper { pid, parent } => {
                assert_eq!(world[&pid].parent, parent);
                adopt(&mut world, pid);
                world.remove(&pid);
            }
            Step::EndZombie(pid) => {
                adopt(&mut world, pid);
                world.get_mut(&pid).expect("alive").zombie = true;
            }
            Step::Build(_) | Step::Stop(_) => {}
        }
    }
    world
}

fn adopt(world: &mut BTreeMap<i32, Modelled>, dying: i32) {
    let mut reaper = world[&dying].parent;
    while !world[&reaper].reaper {
        reaper = world[&reaper].parent;
    }
    world
        .values_mut()
        .filter(|node| node.parent == dying)
        .for_each(|node| node.parent = reaper);
}

fn check(processes: &[ProcessRecord]) {
    let steps = plan(processes, true, &BTreeSet::new()).expect("a plan");
    let world = run(&steps);
    assert_eq!(world.len(), processes.len(), "{steps:?}");
    for process in processes {
        let got = &world[&process.pid.0];
        let zombie = matches!(process.state, ProcessState::Zombie { .. });
        let wanted = Modelled {
            parent: process.ppid.0,
            session: process.sid.0,
            group: process.pgid.0,
            zombie,
            reaper: process.subreaper || process.pid.0 == 1,
        };
        assert_eq!(*got, wanted, "process {} after {steps:?}", process.pid);
    }
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
    let steps = plan(&[root, process(501, 500, 500, 500)], false, &BTreeSet::new()).expect("a plan");
    let world = run(&steps);
    assert_eq!(
        (world[&500].parent, world[&500].session, world[&501].parent),
        (1, 500, 500)
    );
}

#[test]
fn impossible_sessions_are_an_error() {
    let error = plan(
        &[process(1, 0, 1, 1), process(5, 1, 1, 1), process(6, 5, 9, 9)],
        true,
        &BTreeSet::new(),
    );
    assert_eq!(
        error,
        Err(PlanError::Session {
            pid: 6,
            session: 9,
            parent: 5
        })
    );
    assert_eq!(
        plan(&[process(5, 0, 5, 5)], true, &BTreeSet::new()),
        Err(PlanError::NoRoot)
    );
    assert_eq!(
        plan(&[process(1, 0, 1, 1), process(6, 7, 6, 6)], true, &BTreeSet::new()),
        Err(PlanError::Unreachable(6))
    );
}

#[test]
fn a_chain_of_ten_thousand_is_no_recursion() {
    let mut chain = vec![process(1, 0, 1, 1)];
    chain.extend((2..10_000).map(|pid| process(pid, pid - 1, 1, 1)));
    assert!(plan(&chain, true, &BTreeSet::new()).expect("a plan").len() > 10_000);
}
