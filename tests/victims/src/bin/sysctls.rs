//! Settings of namespaces (sysctl): of an own IPC namespace, with objects that need the limits that were raised and one below a
//! limit that was lowered since; of PID namespaces on two levels; limits of user namespaces, on two levels below, too.

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};
use std::{fs, ptr};
use victims::{Findings, Stage, play, stage::first};

const IPC: [(&str, &str); 9] = [
    ("kernel/msgmax", "16384"),
    ("kernel/msgmnb", "65536"),
    ("kernel/msgmni", "5"),
    ("kernel/shmmni", "7"),
    ("kernel/shmall", "1000000"),
    ("kernel/sem", "300 20000 40 9"),
    ("fs/mqueue/msg_max", "30"),
    ("fs/mqueue/queues_max", "3"),
    ("fs/mqueue/msg_default", "4"),
];
const USER: [(&str, &str); 2] = [("user/max_net_namespaces", "11"), ("user/max_time_namespaces", "12")];

fn read(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    Some(text.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
}

/// Sets what may be set here; what is set then. Not everybody may set everything.
fn set(wanted: &[(&'static str, &str)]) -> Vec<(&'static str, Option<String>)> {
    for (name, value) in wanted {
        let _ = fs::write(format!("/proc/sys/{name}"), value);
    }
    wanted.iter().map(|(name, _)| (*name, read(name))).collect()
}

fn compare(findings: &mut Findings, before: &[(&'static str, Option<String>)]) {
    for (name, value) in before {
        findings.same(name.replace('/', "."), value, &read(name));
    }
}

/// A message of 10,000 bytes in a queue of System V, which may be sent only where kernel.msgmax was raised.
fn queue() -> impl Fn(&mut Findings) {
    // SAFETY: plain numbers.
    let id = unsafe { libc::msgget(libc::IPC_PRIVATE, 0o600) };
    assert!(id >= 0, "msgget");
    let mut message = vec![0_u64; 1251];
    message[0] = 1;
    // SAFETY: the buffer is a type and 10,000 bytes.
    let sent = unsafe { libc::msgsnd(id, message.as_ptr().cast(), 10_000, libc::IPC_NOWAIT) };
    assert_eq!(sent, 0, "msgsnd: {}", std::io::Error::last_os_error());
    move |findings| {
        // SAFETY: an all-zero structure of numbers is one.
        let mut state: libc::msqid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is written.
        let asked = unsafe { libc::msgctl(id, libc::IPC_STAT, &raw mut state) };
        findings.same("queue", &(0, 1, 65_536), &(asked, state.msg_qnum, state.msg_qbytes));
    }
}

/// Segments beyond which no further one is allowed.
fn segments() -> impl Fn(&mut Findings) {
    let make = || {
        // SAFETY: plain numbers.
        unsafe { libc::shmget(libc::IPC_PRIVATE, 4096, 0o600) }
    };
    let made: Vec<i32> = (0..3).map(|_| make()).collect();
    assert!(made.iter().all(|id| *id >= 0), "shmget");
    let lowered = set(&[("kernel/shmmni", "3")]);
    move |findings| {
        compare(findings, &lowered);
        let further = make();
        let error = std::io::Error::last_os_error().raw_os_error();
        findings.same("a fourth segment", &(-1, Some(libc::ENOSPC)), &(further, error));
        for id in &made {
            // SAFETY: no structure is given.
            let known = unsafe { libc::shmat(*id, ptr::null(), 0) };
            findings.that(known as isize != -1, format!("segment {id} is gone"));
            // SAFETY: what was attached above, to which nothing refers.
            unsafe { libc::shmdt(known) };
        }
    }
}

/// PID 1 of a namespace below, with settings of its own.
fn below(stage: &Stage) {
    let name = "PID 1 below";
    stage.expect(name);
    first(|| {
        stage.act(name, |_| {
            let before = set(&[("kernel/pid_max", "7000")]);
            move |findings: &mut Findings| compare(findings, &before)
        });
    });
    stage.wait_for_part(name);
}

/// Two user namespaces below each other, each with limits of its own; no third one may be made.
fn users_below(stage: &Stage) {
    let enter = || {
        unshare(CloneFlags::CLONE_NEWUSER).expect("unshare");
        fs::write("/proc/self/setgroups", "deny").expect("deny");
        fs::write("/proc/self/uid_map", "0 0 1").expect("a map");
        fs::write("/proc/self/gid_map", "0 0 1").expect("a map");
    };
    stage.child("limits of its own", |stage| {
        enter();
        stage.child("limits below", |_| {
            enter();
            let before = set(&[("user/max_user_namespaces", "0"), ("user/max_uts_namespaces", "5")]);
            assert_eq!(before[0].1.as_deref(), Some("0"), "a limit");
            move |findings: &mut Findings| {
                compare(findings, &before);
                let made = unshare(CloneFlags::CLONE_NEWUSER);
                findings.same("another one", &Err(Errno::ENOSPC), &made);
            }
        });
        let before = set(&[("user/max_net_namespaces", "3"), ("user/max_user_namespaces", "1")]);
        assert_eq!(before[0].1.as_deref(), Some("3"), "a limit");
        move |findings: &mut Findings| compare(findings, &before)
    });
}

fn main() {
    play(|stage| {
        let ipc = set(&IPC);
        assert!(ipc.iter().all(|(_, value)| value.is_some()), "{ipc:?}");
        let queue = queue();
        let is_root = fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295"));
        // Only the host's root may look into them.
        let segments = is_root.then(segments);
        let pid = set(&[("kernel/pid_max", "9000")]);
        let user = if is_root { Vec::new() } else { set(&USER) };
        below(stage);
        users_below(stage);
        // Nothing is executed from memory any more; last, as it can't be taken back.
        let memory = set(&[("vm/memfd_noexec", "1")]);
        move |findings: &mut Findings| {
            if findings.sabotage() {
                set(&[("kernel/msgmnb", "70000")]);
            }
            let lowered = ipc.iter().filter(|(name, _)| *name != "kernel/shmmni");
            compare(findings, &lowered.cloned().collect::<Vec<_>>());
            compare(findings, &pid);
            compare(findings, &user);
            compare(findings, &memory);
            queue(findings);
            if let Some(segments) = &segments {
                segments(findings);
            }
        }
    })
}
