//! Processes, threads, and their timers.

use super::contradiction;
use crate::sample;
use crate::shared::{open, refusal, written};
use floe_image::record::*;

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
