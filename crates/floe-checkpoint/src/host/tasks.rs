//! Looking into tasks, and choosing their PIDs.

use super::{
    ALL, Finding, NONE, Probe, RESTORING, SAVING, TREES,
    attempt::{Caller, Subject, words},
};
use floe_sys::{
    Pid, descriptor, fork, kcmp,
    memory::{self, MemoryFile},
    procfs::{Mapping, Status},
    ptrace,
};
use floe_tracee::{CallHost, Options, Seized, Stopped};
use nix::{errno::Errno, sys::wait::waitpid};
use std::{
    error::Error,
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd},
};

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "machine",
        used_for: "everything: x86-64 alone is served",
        advice: "an x86-64 machine",
        used_by: ALL,
        needed_by: ALL,
        ask: machine,
    },
    Probe {
        name: "capabilities",
        used_for: "processes of other users, what is the host's own, limits that must be raised",
        advice: "run floe as root; in a container, have them added (docker run --cap-add)",
        used_by: ALL,
        needed_by: NONE,
        ask: capabilities,
    },
    Probe {
        name: "tracing",
        used_for: "stopping tasks by ptrace(2), calls in them by a stub in the vDSO, their descriptors (pidfd_getfd)",
        advice: "kernel.yama.ptrace_scope below 2; no seccomp filter that forbids ptrace",
        used_by: TREES,
        needed_by: TREES,
        ask: tracing,
    },
    Probe {
        name: "/proc/PID/mem",
        used_for: "putting the stub, and memory that can't be written, into tasks",
        advice: "boot without proc_mem.force_override=never",
        used_by: TREES,
        needed_by: TREES,
        ask: memory_file,
    },
    Probe {
        name: "kcmp",
        used_for: "telling which tasks share what: files, memory, tables",
        advice: "a kernel with CONFIG_KCMP",
        used_by: SAVING,
        needed_by: SAVING,
        ask: compare,
    },
    Probe {
        name: "seccomp filters",
        used_for: "trees whose calls are confined",
        advice: "run floe as root, and not below a seccomp filter; a kernel with CONFIG_CHECKPOINT_RESTORE",
        used_by: TREES,
        needed_by: NONE,
        ask: filters,
    },
    Probe {
        name: "chosen PIDs",
        used_for: "giving tasks the PIDs they had",
        advice: "where set_tid alone works: restore --pid-method set-tid; a kernel with CONFIG_CHECKPOINT_RESTORE",
        used_by: RESTORING,
        needed_by: RESTORING,
        ask: pids,
    },
    Probe {
        name: "PR_SET_MM_MAP",
        used_for: "giving tasks the layout of memory that /proc tells of them, and their executable",
        advice: "a kernel with CONFIG_CHECKPOINT_RESTORE",
        used_by: RESTORING,
        needed_by: RESTORING,
        ask: layout,
    },
];

fn machine(_: &Caller) -> Finding {
    match nix::sys::utsname::uname() {
        Ok(name) => {
            let (release, machine) = (name.release().to_string_lossy(), name.machine().to_string_lossy());
            let found = format!("Linux {release}, {machine}");
            if machine == "x86_64" {
                Finding::Yes(found)
            } else {
                Finding::No(found)
            }
        }
        Err(error) => Finding::No(words(&error)),
    }
}

/// Those that floe uses, by their numbers in linux/capability.h.
const CAPABILITIES: [(u64, &str); 14] = [
    (0, "CHOWN"),
    (1, "DAC_OVERRIDE"),
    (2, "DAC_READ_SEARCH"),
    (5, "KILL"),
    (6, "SETGID"),
    (7, "SETUID"),
    (12, "NET_ADMIN"),
    (18, "SYS_CHROOT"),
    (19, "SYS_PTRACE"),
    (21, "SYS_ADMIN"),
    (24, "SYS_RESOURCE"),
    (38, "PERFMON"),
    (39, "BPF"),
    (40, "CHECKPOINT_RESTORE"),
];

fn capabilities(caller: &Caller) -> Finding {
    let lacking = CAPABILITIES.iter().filter(|(number, _)| !caller.has(*number));
    let lacking: Vec<String> = lacking.map(|(_, name)| format!("CAP_{name}")).collect();
    if !caller.is_of_host {
        Finding::Partly("those of a user namespace, which count for what belongs to that".to_owned())
    } else if lacking.is_empty() {
        Finding::Yes("all that floe uses".to_owned())
    } else if lacking.len() == CAPABILITIES.len() {
        Finding::No(format!("none (user {}): what is yours alone can be done", caller.user))
    } else {
        Finding::Partly(format!("without {}", lacking.join(", ")))
    }
}

/// Does something to a child that stands still.
fn with_stopped<T>(what: impl FnOnce(&Stopped, Pid) -> Result<T, Box<dyn Error>>) -> Result<T, Box<dyn Error>> {
    let subject = Subject::start()?;
    let stopped = Seized::new(subject.0, Options::Observe)?.stop()?;
    let done = what(&stopped, subject.0);
    stopped.detach()?;
    done
}

fn found(result: Result<(), Box<dyn Error>>, yes: &str) -> Finding {
    match result {
        Ok(()) => Finding::Yes(yes.to_owned()),
        Err(error) => Finding::No(words(&*error)),
    }
}

fn tracing(_: &Caller) -> Finding {
    let done = File::open("/proc/self/exe").map_err(Into::into).and_then(|file| {
        with_stopped(|stopped, pid| {
            call_in(stopped, pid)?;
            let pidfd = descriptor::pidfd_open(pid)?;
            descriptor::pidfd_getfd(pidfd.as_fd(), file.as_raw_fd())?;
            Ok(())
        })
    });
    found(done, "a child was stopped, called in and let go")
}

/// Asks a child for its PID, by its own call.
fn call_in(stopped: &Stopped, pid: Pid) -> Result<(), Box<dyn Error>> {
    let status = Status::read(&format!("/proc/{pid}"))?;
    let own = status.ns_pid.last().copied().unwrap_or(pid.raw());
    let host = CallHost::new(stopped, own, &Mapping::read_all_without_flags(pid)?)?;
    let mut batch = host.batch();
    let call = batch.call("ask for its PID", libc::SYS_getpid, &[]);
    host.run(stopped, own, &status, &mut batch)?;
    let told = batch.result(call);
    host.remove()?;
    if told == i64::from(own) {
        Ok(())
    } else {
        Err(format!("a child with the PID {own} says {told}").into())
    }
}

fn memory_file(_: &Caller) -> Finding {
    let done = with_stopped(|_, pid| {
        let mappings = Mapping::read_all_without_flags(pid)?;
        let own = std::env::current_exe()?;
        let fixed = mappings.iter().find(|mapping| {
            let is_program = mapping.path == own.as_os_str().as_encoded_bytes();
            is_program && mapping.prot & libc::PROT_WRITE as u32 == 0 && !mapping.shared
        });
        let fixed = fixed.ok_or("a child's program is not in its memory")?;
        let file = MemoryFile::open(pid)?;
        // What is there already.
        let mut byte = [0];
        file.read(fixed.start, &mut byte)?;
        Ok(file.write(fixed.start, &byte)?)
    });
    found(done, "also where a task may not write itself")
}

fn compare(_: &Caller) -> Finding {
    let own = Pid::new(std::process::id() as i32);
    let done = kcmp::compare(kcmp::Resource::Memory, (own, 0), (own, 0));
    found(done.map(drop).map_err(Into::into), "it answers")
}

fn filters(_: &Caller) -> Finding {
    let done = with_stopped(|stopped, pid| {
        match ptrace::seccomp_filter(pid, 0) {
            // The child has none.
            Err(Errno::EINVAL) | Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(stopped.suspend_seccomp()?)
    });
    found(done, "they can be read and lifted")
}

fn pids(caller: &Caller) -> Finding {
    const WANTED: i32 = 300;
    let check = |child: nix::unistd::Pid| {
        waitpid(child, None)?;
        let got = child.as_raw();
        if got == WANTED {
            Ok(got)
        } else {
            Err(io::Error::other(format!("{got} came instead of {WANTED}")))
        }
    };
    let last = caller.attempt(libc::CLONE_NEWPID, || {
        fs::write("/proc/sys/kernel/ns_last_pid", (WANTED - 1).to_string())?;
        check(fork::child(|| 0)?)
    });
    let set = caller.attempt(libc::CLONE_NEWPID, || check(fork::child_with_pid(WANTED, || 0)?));
    let place = caller.place();
    match (last, set) {
        (Ok(_), Ok(_)) => Finding::Yes(format!("ns_last_pid and set_tid{place}")),
        (Ok(_), Err(error)) => Finding::Partly(format!("ns_last_pid{place}; set_tid: {}", words(&error))),
        (Err(error), Ok(_)) => Finding::Partly(format!("set_tid{place}; ns_last_pid: {}", words(&error))),
        (Err(last), Err(set)) => Finding::No(format!("ns_last_pid: {}; set_tid: {}", words(&last), words(&set))),
    }
}

fn layout(_: &Caller) -> Finding {
    let done = memory::layout_bytes();
    found(done.map(drop).map_err(Into::into), "the kernel takes it")
}
