//! Settings (sysctl) of IPC, PID and user namespaces. The kernel shows and sets those of whoever looks: those of an IPC
//! namespace to a thread that has entered it, those of a PID namespace only to a process that was born in it.

use super::inside::{NsError, run, run_in_new};
use crate::{
    refusal::Refusals,
    tree::{FoundProcess, FoundTree},
};
use floe_image::record::{NamespaceOrigin, SysctlKind, SysctlRecord};
use floe_sys::{Pid, fork, namespace::is_in_first_user};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::CloneFlags,
    sys::{
        stat::Mode,
        wait::{WaitStatus, waitpid},
    },
    unistd::{pipe2, read, write},
};
use std::{
    collections::BTreeMap,
    io::{self, Read},
    os::fd::OwnedFd,
};

/// What a user namespace has that nobody has limited.
const UNLIMITED: &str = "2147483647";
/// More than any of these takes.
const ROOM: usize = 256;

/// Names and values.
type Values = Vec<(&'static str, String)>;

fn place(name: &str) -> String {
    format!("/proc/sys/{name}")
}

/// Those that this kernel has, as the calling thread sees them.
fn seen(kind: SysctlKind) -> io::Result<Values> {
    let mut found = Vec::new();
    for name in kind.names() {
        match std::fs::read_to_string(place(name)) {
            Ok(text) => found.push((*name, plain(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// With one blank between numbers.
fn plain(text: &str) -> String {
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs `act` in a process that is born into the PID namespace that children of the calling thread are; its result, 0 or an
/// error number, is the exit status. It must take no memory: another thread may be about to.
fn born(act: impl FnOnce() -> Result<(), Errno>) -> io::Result<()> {
    let child = fork::child(|| act().err().map_or(0, |error| error as i32))?;
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
            Ok(WaitStatus::Exited(_, error)) => return Err(io::Error::from_raw_os_error(error)),
            Ok(WaitStatus::Signaled(..)) => return Err(io::Error::other("the process that was to do it was killed")),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The same setting as `seen`, by a process that `born` makes; `None` where this kernel does not have it.
fn seen_by_child(name: &str) -> io::Result<Option<String>> {
    let path = place(name);
    let (near, far) = pipe2(OFlag::O_CLOEXEC)?;
    let told = born(|| {
        let file = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut room = [0; ROOM];
        let bytes = read(&file, &mut room)?;
        write(&far, &room[..bytes]).map(drop)
    });
    drop(far);
    match told {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        told => told?,
    }
    let mut text = String::new();
    std::fs::File::from(near).read_to_string(&mut text)?;
    Ok(Some(plain(&text)))
}

fn all_seen_by_children() -> io::Result<Values> {
    let mut found = Vec::new();
    for name in SysctlKind::Pid.names() {
        found.extend(seen_by_child(name)?.map(|value| (*name, value)));
    }
    Ok(found)
}

fn set(path: &str, value: &str) -> Result<(), Errno> {
    let file: OwnedFd = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    write(&file, value.as_bytes()).map(drop)
}

/// Records of those that a new namespace would not have.
fn differing<'a>(
    (kind, namespace): (SysctlKind, u32),
    values: Values,
    usual: &'a Values,
) -> impl Iterator<Item = SysctlRecord> + 'a {
    let differs =
        move |(name, value): &(&str, String)| usual.iter().all(|(other, usual)| (other, usual) != (name, value));
    values
        .into_iter()
        .filter(differs)
        .map(move |(name, value)| SysctlRecord {
            kind,
            namespace,
            name: name.to_owned(),
            value,
        })
}

/// Those of the tree's own namespaces; `origin` is that of its IPC namespace.
///
/// # Errors
/// [`NsError`].
pub fn find(tree: &FoundTree, origin: NamespaceOrigin, refusals: &mut Refusals) -> Result<Vec<SysctlRecord>, NsError> {
    let Some(root) = tree.root() else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    if origin == NamespaceOrigin::Own {
        found.extend(of_ipc(0, root.task())?);
        refuse_orphans(root, &found, refusals)?;
    }
    // Without its PID 1 it is in a namespace of others.
    if root.ns_pid == 1 {
        let mut usual = Values::new();
        for name in SysctlKind::Pid.names() {
            // The first child is PID 1, with which its namespace ends.
            let value = run_in_new(CloneFlags::CLONE_NEWPID, || seen_by_child(name))?;
            usual.extend(value.map(|value| (*name, value)));
        }
        for (number, _) in tree.pid_namespaces.iter().enumerate() {
            let first = tree.living().find(|process| process.pid_namespace == number);
            let Some(first) = first else { continue };
            let values = run(first.task(), CloneFlags::CLONE_NEWPID, all_seen_by_children)?;
            found.extend(differing((SysctlKind::Pid, number as u32), values, &usual));
        }
    }
    let failed = |source| NsError::Read {
        path: "/proc/sys/user".to_owned(),
        source,
    };
    // The host's are not the tree's. That of an ordinary user's sandbox floe has entered.
    if !is_in_first_user().map_err(NsError::Proc)? {
        let values = seen(SysctlKind::User).map_err(failed)?;
        let usual = values.iter().map(|(name, _)| (*name, UNLIMITED.to_owned())).collect();
        found.extend(differing((SysctlKind::User, 0), values, &usual));
    }
    Ok(found)
}

/// Those of the IPC namespace of a task, which has a number among the tree's.
fn of_ipc(number: u32, task: Pid) -> Result<Vec<SysctlRecord>, NsError> {
    let usual = run_in_new(CloneFlags::CLONE_NEWIPC, || seen(SysctlKind::Ipc))?;
    let values = run(task, CloneFlags::CLONE_NEWIPC, || seen(SysctlKind::Ipc))?;
    Ok(differing((SysctlKind::Ipc, number), values, &usual).collect())
}

/// With kernel.shm_rmid_forced segments end with the process that made them, and floe's makers end.
fn refuse_orphans(root: &FoundProcess, found: &[SysctlRecord], refusals: &mut Refusals) -> Result<(), NsError> {
    let forced = found.iter().find(|record| record.name == "kernel/shm_rmid_forced");
    let Some(forced) = forced.filter(|record| record.value != "0") else {
        return Ok(());
    };
    let list = run(root.task(), CloneFlags::CLONE_NEWIPC, || {
        std::fs::read_to_string("/proc/sysvipc/shm")
    })?;
    // Columns of proc_pid(5): key, shmid, perms, size, cpid, lpid, nattch.
    let attached = |line: &str| line.split_ascii_whitespace().nth(6).map(|count| count != "0");
    if list.lines().skip(1).any(|line| attached(line) == Some(false)) {
        refusals.add(
            Some(&root.subject()),
            forced.title(),
            "a segment that nobody has attached would go with floe's process that makes it again",
            "ipcrm it, or set kernel.shm_rmid_forced=0",
        );
    }
    Ok(())
}

/// Settings that can't be made here, and why.
///
/// # Errors
/// [`NsError`].
pub fn obstacles(records: &[SysctlRecord]) -> Result<Vec<(String, String)>, NsError> {
    let is_first = is_in_first_user().map_err(NsError::Proc)?;
    let mut found = Vec::new();
    for record in records {
        let path = place(&record.name);
        let attempt = match record.kind {
            SysctlKind::Ipc => run_in_new(CloneFlags::CLONE_NEWIPC, || Ok(set(&path, &record.value)?)),
            SysctlKind::Pid => run_in_new(CloneFlags::CLONE_NEWPID, || born(|| set(&path, &record.value))),
            SysctlKind::User if is_first => {
                let reason = format!("it was {} in a user namespace, and here it is the host's", record.value);
                found.push((record.title(), reason));
                continue;
            }
            SysctlKind::User => continue,
        };
        match attempt {
            Ok(()) => {}
            Err(NsError::Enter { source, .. }) => {
                found.push((
                    record.title(),
                    format!("it can't be set to {} here: {source}", record.value),
                ));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Makes limits of the IPC namespace of a task as high as they are to be, before its objects are made. Those that are to be lower
/// wait until then.
///
/// # Errors
/// [`NsError`].
pub fn raise(records: &[SysctlRecord], namespace: u32, task: Pid) -> Result<(), NsError> {
    let is_limit = |name: &str| !name.ends_with("_next_id") && name != "kernel/shm_rmid_forced";
    let of_it = |record: &&SysctlRecord| (record.kind, record.namespace) == (SysctlKind::Ipc, namespace);
    let limits: Vec<_> = records
        .iter()
        .filter(of_it)
        .filter(|record| is_limit(&record.name))
        .collect();
    if limits.is_empty() {
        return Ok(());
    }
    run(task, CloneFlags::CLONE_NEWIPC, || {
        for record in limits {
            let path = place(&record.name);
            let now = std::fs::read_to_string(&path)?;
            set(&path, &higher(&record.value, &plain(&now)))?;
        }
        Ok(())
    })
}

/// The higher one of each two numbers.
fn higher(wanted: &str, now: &str) -> String {
    let number = |word: &str| word.parse::<i128>().unwrap_or(0);
    let both = wanted.split(' ').zip(now.split(' '));
    let all: Vec<_> = both
        .map(|(wanted, now)| number(wanted).max(number(now)).to_string())
        .collect();
    all.join(" ")
}

/// Makes all settings, when everything else is there. `task` finds somebody who is in a PID namespace.
///
/// # Errors
/// [`NsError`].
pub fn settle(records: &[SysctlRecord], root: Pid, inside: &BTreeMap<u32, Pid>) -> Result<(), NsError> {
    for record in records {
        let path = place(&record.name);
        match record.kind {
            SysctlKind::Ipc => run(root, CloneFlags::CLONE_NEWIPC, || Ok(set(&path, &record.value)?))?,
            SysctlKind::Pid => {
                let task = inside.get(&record.namespace).copied().unwrap_or(root);
                run(task, CloneFlags::CLONE_NEWPID, || born(|| set(&path, &record.value)))?;
            }
            SysctlKind::User => set(&path, &record.value).map_err(|error| NsError::Read {
                path,
                source: error.into(),
            })?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{differing, higher, plain};
    use floe_image::record::SysctlKind;

    #[test]
    fn only_what_differs_is_carried() {
        let usual = vec![
            ("kernel/sem", "1 2 3 4".to_owned()),
            ("kernel/msgmax", "8192".to_owned()),
        ];
        let now = vec![
            ("kernel/sem", plain("1\t2\t3\t5\n")),
            ("kernel/msgmax", "8192".to_owned()),
            ("kernel/new", "1".to_owned()),
        ];
        let found: Vec<_> = differing((SysctlKind::Ipc, 0), now, &usual)
            .map(|record| record.title())
            .collect();
        assert_eq!(found, ["sysctl kernel.sem", "sysctl kernel.new"]);
    }

    #[test]
    fn limits_are_raised_number_by_number() {
        assert_eq!(
            higher("1 500 3 18446744073692774399", "2 400 3 5"),
            "2 500 3 18446744073692774399"
        );
    }
}
