//! Processes and threads of the images with fixed contents.

use super::noise;
use floe_image::record::*;

pub fn process(pid: i32, ppid: i32, tids: &[i32], state: ProcessState) -> ProcessRecord {
    let number = pid as u64;
    ProcessRecord {
        pid: NsPid(pid),
        ppid: NsPid(ppid),
        pgid: NsPid(pid),
        sid: NsPid(1),
        pid_namespace: 0,
        pids_of_children: PidsOfChildren::Known(0),
        mount_namespace: 0,
        time_of_children: 0,
        state,
        threads: tids.iter().map(|tid| thread(*tid)).collect(),
        actions: (1..=64).map(|signal| action(number, signal)).collect(),
        pending: vec![(0..128).map(|byte| byte ^ pid as u8).collect()],
        limits: (0..16)
            .map(|limit| ResourceLimit {
                soft: limit,
                hard: if limit == 7 { 4096 } else { u64::MAX },
            })
            .collect(),
        umask: 0o022,
        cwd: DirectoryRecord {
            path: if pid == 7 {
                b"/srv/gone".to_vec()
            } else {
                b"/srv".to_vec()
            },
            mount_namespace: 0,
            ghost: (pid == 7).then_some(2),
        },
        root: DirectoryRecord {
            path: b"/".to_vec(),
            mount_namespace: 0,
            ghost: None,
        },
        timers: [
            IntervalTimer {
                interval: 1_000_000,
                value: 250_000,
            },
            IntervalTimer::default(),
            IntervalTimer { interval: 0, value: 1 },
        ],
        personality: 0x0004_0000,
        dumpable: 1,
        subreaper: pid == 1,
        thp_disable: pid == 7,
        oom_score_adj: -500,
        coredump_filter: 0x33,
        exit_signal: 17,
        terminal: (pid == 1).then_some(TerminalLink {
            pair: Some(0),
            foreground: NsPid(7),
        }),
        no_terminal: pid == 7,
        membarrier: if pid == 7 { 1 << 4 } else { 0 },
        shared: 0,
        leader_ended: None,
        posix_timers: if pid == 7 { timers() } else { Vec::new() },
        switches: ProcessSwitches {
            deny_write_execute: u32::from(pid == 7),
            merge_memory: pid == 7,
            thp_except_advised: pid == 7,
            autogroup_nice: (pid == 1).then_some(-3),
        },
    }
}

fn timers() -> Vec<PosixTimerRecord> {
    let timer = |id, clock, expiry| PosixTimerRecord {
        id,
        clock,
        maker: NsPid(7),
        notify: 0,
        target: NsPid(0),
        signal: 34,
        value: 0xfeed_0000 + id as u64,
        interval: 0,
        expiry,
        overrun: 0,
    };
    vec![
        PosixTimerRecord {
            interval: 20_000_000,
            overrun: 3,
            ..timer(0, 1, TimerExpiry::At(12_345_678_999_999))
        },
        timer(3, 0, TimerExpiry::Unset(99_999_999_999_999)),
        PosixTimerRecord {
            maker: NsPid(9),
            notify: 4,
            target: NsPid(9),
            ..timer(7, -2, TimerExpiry::After(1))
        },
        timer(i32::MAX, 7, TimerExpiry::Never),
    ]
}

/// Puts a process and its threads, by their ids there, into the PID namespace below the tree's.
pub fn below(mut process: ProcessRecord, ids: &[i32]) -> ProcessRecord {
    process.pid_namespace = 1;
    process.pids_of_children = PidsOfChildren::Known(1);
    process.time_of_children = 5;
    for (thread, id) in process.threads.iter_mut().zip(ids) {
        thread.inner = vec![NsPid(*id)];
        thread.namespaces = TaskNamespaces {
            user: 2,
            uts: if *id == 1 { 3 } else { 0 },
            ipc: 4,
            network: 6,
            time: 5,
            cgroup: 7,
        };
    }
    process
}

pub fn zombie(pid: i32, ppid: i32, status: i32) -> ProcessRecord {
    ProcessRecord {
        actions: Vec::new(),
        pending: Vec::new(),
        limits: Vec::new(),
        cwd: DirectoryRecord::default(),
        root: DirectoryRecord::default(),
        ..process(pid, ppid, &[pid], ProcessState::Zombie { status })
    }
}

fn action(pid: u64, signal: u64) -> SignalAction {
    match signal {
        2 => SignalAction {
            handler: 0x40_1000 + pid,
            flags: 0x1400_0004,
            restorer: 0x40_2000,
            mask: 1 << 14,
        },
        13 => SignalAction {
            handler: 1,
            flags: 0,
            restorer: 0,
            mask: 0,
        },
        _ => SignalAction {
            handler: 0,
            flags: 0,
            restorer: 0,
            mask: 0,
        },
    }
}

fn thread(tid: i32) -> ThreadRecord {
    let number = tid as u64;
    ThreadRecord {
        tid: NsPid(tid),
        inner: Vec::new(),
        namespaces: TaskNamespaces::default(),
        comm: format!("task {tid}").into_bytes(),
        registers: Registers {
            general: noise(number, 27 * 8),
            extended: noise(number + 100, 64),
        },
        signal_mask: 1 << tid,
        alternate_stack: AlternateStack {
            base: 0x40_0000,
            flags: 2,
            size: 8192,
        },
        pending: vec![vec![tid as u8; 128]; usize::from(tid == 4)],
        robust_list: RobustList {
            head: 0x40_0100 + number,
            size: 24,
        },
        rseq: (tid != 9).then_some(RseqRegistration {
            address: 0x40_0200,
            size: 32,
            signature: 0x5305_3053,
        }),
        tid_address: 0x40_0300,
        credentials: Credentials {
            uids: [1000, 1000, 0, 1000],
            gids: [100, 101, 102, 103],
            groups: vec![4, 24, 27],
            inheritable: 0,
            permitted: (1 << 41) - 1,
            effective: 1 << 21,
            bounding: (1 << 41) - 1,
            ambient: 0,
            securebits: 0x10,
            no_new_privs: tid == 7,
        },
        scheduling: Scheduling {
            policy: 2,
            flags: 1,
            nice: -5,
            priority: 3,
            deadline: [10, 20, 30],
            affinity: vec![0, 1],
            io_priority: 0x4002,
        },
        parent_death_signal: 15,
        timer_slack: 50_000,
        slept: 1_500_000_000,
        seccomp: confinement(tid),
        switches: switches(tid),
    }
}

fn confinement(tid: i32) -> SeccompRecord {
    let filter = |log, length: usize| SeccompFilter {
        log,
        program: noise(tid as u64, length),
    };
    match tid {
        1 => SeccompRecord {
            strict: true,
            filters: Vec::new(),
        },
        7 => SeccompRecord {
            strict: false,
            filters: vec![filter(true, 40), filter(false, 8)],
        },
        _ => SeccompRecord::default(),
    }
}

fn switches(tid: i32) -> ThreadSwitches {
    if tid != 7 {
        return ThreadSwitches::default();
    }
    ThreadSwitches {
        tsc_forbidden: true,
        cpuid_forbidden: true,
        machine_check: Some(1),
        speculation: vec![(0, 4), (2, 2)],
        memory_policy: Some(MemoryPolicy {
            mode: 3,
            nodes: vec![0b11, 1],
        }),
        dispatch: Some(CallDispatch {
            selector: 0x40_0400,
            start: 0x40_0000,
            length: 0x1000,
        }),
    }
}

pub fn with_extended(mut thread: ThreadRecord, bytes: usize) -> ThreadRecord {
    thread.registers.extended.truncate(bytes);
    thread
}
