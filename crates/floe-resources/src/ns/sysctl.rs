//! Settings (sysctl) of IPC, PID and user namespaces. The kernel shows and sets those of whoever looks: those of an IPC
//! namespace to a thread that has entered it, those of a PID namespace only to a process that was born in it.

use super::{
    contents,
    inside::{NsError, run, run_in, run_in_new},
    others::Others,
};
use crate::{
    ipc::{IpcSpace, IpcSpaces},
    refusal::Refusals,
    tree::FoundTree,
};
use floe_image::record::{NamespaceRecord, SysctlKind, SysctlRecord};
use floe_sys::{
    Pid,
    capability::as_user,
    fork,
    namespace::{self, is_in_first_user},
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::CloneFlags,
    sys::{
        stat::{Mode, fstat},
        wait::{WaitStatus, waitpid},
    },
    unistd::{getegid, getpid, pipe2, read, write},
};
use std::{
    ffi::CString,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

/// What a user namespace has that nobody has limited.
const UNLIMITED: &str = "2147483647";
/// More than any of these takes.
const ROOM: usize = 256;
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

/// Names and values.
pub(super) type Values = Vec<(&'static str, String)>;

fn place(name: &str) -> String {
    format!("/proc/sys/{name}")
}

/// Those that this kernel has, as the calling thread sees them.
pub(super) fn seen(kind: SysctlKind) -> io::Result<Values> {
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

/// Those of a PID namespace, by a process that `born` makes, which gives the number back that it took there, so that the next
/// process of the namespace gets it.
fn seen_by_child() -> io::Result<Values> {
    let paths: Vec<String> = SysctlKind::Pid.names().iter().map(|name| place(name)).collect();
    let (near, far) = pipe2(OFlag::O_CLOEXEC)?;
    born(|| {
        let mut number = [0; 12];
        let last = decimal(getpid().as_raw() - 1, &mut number);
        // Where it can't be written, that process gets a later number, which is no reason not to save the tree.
        if let Ok(file) = open(LAST_PID, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            let _ = write(&file, last);
        }
        for path in &paths {
            let mut room = [0; ROOM];
            match open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
                Ok(file) => {
                    let bytes = read(&file, &mut room)?;
                    write(&far, &room[..bytes])?;
                }
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(error),
            }
            write(&far, &[0])?;
        }
        Ok(())
    })?;
    drop(far);
    let mut text = String::new();
    std::fs::File::from(near).read_to_string(&mut text)?;
    let both = SysctlKind::Pid.names().iter().zip(text.split('\0'));
    Ok(both
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (*name, plain(value)))
        .collect())
}

/// The digits of a number, without memory of the heap.
fn decimal(mut number: i32, room: &mut [u8; 12]) -> &[u8] {
    let mut start = room.len();
    loop {
        start -= 1;
        room[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &room[start..];
        }
    }
}

/// Those of a new PID namespace, where `values` are those of one of the tree's: without making one where these are the ones
/// that Linux gives to all.
fn usual_of_pids(values: &Values) -> Result<Values, NsError> {
    /// PID_MAX_LIMIT of linux/threads.h, which a new namespace has since these have their own (Linux 6.14).
    const MOST: &str = "4194304";
    let here = seen(SysctlKind::Pid).map_err(|source| NsError::Read {
        path: "/proc/sys".to_owned(),
        source,
    })?;
    let is_usual = |(name, value): &(&str, String)| match *name {
        "kernel/pid_max" => value == MOST,
        // That of the one above.
        _ => here.iter().any(|(other, here)| other == name && here == value),
    };
    if values.iter().all(is_usual) {
        return Ok(values.clone());
    }
    // The first child is PID 1, with which its namespace ends.
    run_in_new(CloneFlags::CLONE_NEWPID, seen_by_child)
}

fn set(path: &str, value: &str) -> Result<(), Errno> {
    let file: OwnedFd = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    write(&file, value.as_bytes()).map(drop)
}

/// Sets one of the IPC namespace that the calling thread has entered. Since Linux 5.19 nobody may but root of the user
/// namespace whose it is, whoever that is out here.
fn set_inside(path: &str, value: &str) -> io::Result<()> {
    match set(path, value) {
        Err(Errno::EACCES) => {}
        done => return Ok(done?),
    }
    let root = root_inside()?.ok_or(Errno::EACCES)?;
    Ok(as_user((root, getegid().as_raw()), || set(path, value))??)
}

/// Who is root of the user namespace that the calling thread's IPC namespace is of, by the numbers of the thread's own.
fn root_inside() -> io::Result<Option<u32>> {
    let owner = namespace::owner(File::open("/proc/thread-self/ns/ipc")?.as_fd())?;
    if fstat(&owner)?.st_ino == std::fs::metadata("/proc/thread-self/ns/user")?.ino() {
        return Ok(Some(0));
    }
    let users = contents::look_at_user(owner.as_fd())?.users;
    let root = users.iter().find(|range| range.inside == 0).map(|range| range.above);
    // What is not known out here has no number.
    Ok(root.filter(|number| *number != u32::MAX))
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

/// Those of the tree's PID and user namespaces. To be looked for while floe has no process in the tree's PID namespaces.
///
/// # Errors
/// [`NsError`].
pub fn find(tree: &FoundTree) -> Result<Vec<SysctlRecord>, NsError> {
    let Some(root) = tree.root() else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    // Without its PID 1 it is in a namespace of others.
    if root.ns_pid == 1 {
        for (number, _) in tree.pid_namespaces.iter().enumerate() {
            let first = tree.living().find(|process| process.pid_namespace == number);
            let Some(first) = first else { continue };
            let values = run(first.task(), CloneFlags::CLONE_NEWPID, seen_by_child)?;
            let usual = usual_of_pids(&values)?;
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

/// Those of user namespaces below the one that floe is in.
///
/// # Errors
/// [`NsError`].
pub fn find_of_users(others: &Others, refusals: &mut Refusals) -> Result<Vec<SysctlRecord>, NsError> {
    let names = SysctlKind::User.names();
    let path = |name: &&str| {
        let path = place(name);
        CString::new(path.as_str()).map_err(|error| NsError::Read {
            source: error.into(),
            path,
        })
    };
    let paths: Vec<CString> = names.iter().map(path).collect::<Result<_, _>>()?;
    let usual = names.iter().map(|name| (*name, UNLIMITED.to_owned())).collect();
    let mut all = Vec::new();
    for (number, user) in others.users() {
        match namespace::read_inside(user.file.as_fd(), &paths) {
            Ok(texts) => {
                let there = names.iter().zip(texts);
                let values: Values = there.filter_map(|(name, text)| Some((*name, plain(&text?)))).collect();
                all.extend(differing((SysctlKind::User, number), values, &usual));
            }
            Err(error) => {
                let reason = format!("its limits (/proc/sys/user) can't be read: {error}");
                refusals.add(None, user.title(), reason, "have it saved by the user who made it");
            }
        }
    }
    Ok(all)
}

/// Those of the tree's IPC namespaces.
///
/// # Errors
/// [`NsError`].
pub fn find_of_ipc(spaces: &IpcSpaces, refusals: &mut Refusals) -> Result<Vec<SysctlRecord>, NsError> {
    let mut all = Vec::new();
    if spaces.all().is_empty() {
        return Ok(all);
    }
    let look = || seen(SysctlKind::Ipc);
    let usual = run_in_new(CloneFlags::CLONE_NEWIPC, look)?;
    for space in spaces.all() {
        let values = run_in(space.file(), look).map_err(|source| NsError::Read {
            path: space.title("the settings"),
            source,
        })?;
        let found: Vec<_> = differing((SysctlKind::Ipc, space.number), values, &usual).collect();
        refuse_orphans(space, &found, refusals);
        all.extend(found);
    }
    Ok(all)
}

/// With kernel.shm_rmid_forced segments end with the process that made them, and floe's makers end.
fn refuse_orphans(space: &IpcSpace, found: &[SysctlRecord], refusals: &mut Refusals) {
    let forced = found.iter().find(|record| record.name == "kernel/shm_rmid_forced");
    let Some(forced) = forced.filter(|record| record.value != "0") else {
        return;
    };
    if space.segments.iter().any(|segment| segment.attached == 0) {
        refusals.add(
            None,
            space.title(&forced.title()),
            "a segment that nobody has attached would go with floe's process that makes it again",
            "ipcrm it, or set kernel.shm_rmid_forced=0",
        );
    }
}

/// Whether each PID namespace has a limit of its own, which can be set without a change of the host's.
fn has_own_limits() -> bool {
    let release = nix::sys::utsname::uname();
    release.is_ok_and(|names| is_from(&names.release().to_string_lossy(), (6, 14)))
}

/// Whether a kernel's release is this version or a later one.
fn is_from(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted
}

/// Settings that can't be made here, and why.
///
/// # Errors
/// [`NsError`].
pub fn obstacles(records: &[SysctlRecord], namespaces: &[NamespaceRecord]) -> Result<Vec<(String, String)>, NsError> {
    let is_first = is_in_first_user().map_err(NsError::Proc)?;
    let mut found = Vec::new();
    // Whose one is decides who may set what in it.
    let is_set = |number| {
        let of = |record: &SysctlRecord| (record.kind, record.namespace) == (SysctlKind::Ipc, number);
        records.iter().any(of)
    };
    let made = match contents::rehearse(namespaces, |number, _| is_set(number)) {
        Ok(made) => made,
        Err(error) => {
            let reason = format!("this host can't make them: {error}");
            return Ok(vec![("IPC namespaces".to_owned(), reason)]);
        }
    };
    for record in records {
        let path = place(&record.name);
        if record.name == "kernel/pid_max" && !has_own_limits() {
            let reason = format!(
                "it was {} in a PID namespace, and here it is the host's (Linux 6.14)",
                record.value
            );
            found.push((record.title(), reason));
            continue;
        }
        let attempt = match record.kind {
            SysctlKind::Ipc => match made.get(&record.namespace) {
                Some(made) => {
                    run_in(made.as_fd(), || set_inside(&path, &record.value)).map_err(|source| NsError::Write {
                        path: path.clone(),
                        source,
                    })
                }
                None => run_in_new(CloneFlags::CLONE_NEWIPC, || set_inside(&path, &record.value)),
            },
            SysctlKind::Pid => run_in_new(CloneFlags::CLONE_NEWPID, || born(|| set(&path, &record.value))),
            SysctlKind::User if record.namespace == 0 && is_first => {
                let reason = format!("it was {} in a user namespace, and here it is the host's", record.value);
                found.push((record.title(), reason));
                continue;
            }
            SysctlKind::User => continue,
        };
        match attempt {
            Ok(()) => {}
            Err(NsError::Enter { source, .. } | NsError::Write { source, .. }) => {
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

/// Makes limits of an IPC namespace as high as they are to be, before its objects are made. Those that are to be lower wait
/// until then.
///
/// # Errors
/// Those of writing them.
pub fn raise(records: &[SysctlRecord], (number, namespace): (u32, BorrowedFd<'_>)) -> io::Result<()> {
    let is_limit = |name: &str| !name.ends_with("_next_id") && name != "kernel/shm_rmid_forced";
    let of_it = |record: &&SysctlRecord| (record.kind, record.namespace) == (SysctlKind::Ipc, number);
    let limits: Vec<_> = records
        .iter()
        .filter(of_it)
        .filter(|record| is_limit(&record.name))
        .collect();
    if limits.is_empty() {
        return Ok(());
    }
    run_in(namespace, || {
        for record in limits {
            let path = place(&record.name);
            let now = std::fs::read_to_string(&path)?;
            set_inside(&path, &higher(&record.value, &plain(&now)))?;
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

/// Makes a setting, when everything else is there: in an IPC or user namespace, or in the PID namespace of `task`.
///
/// # Errors
/// [`NsError`].
pub fn settle(record: &SysctlRecord, inside: Option<BorrowedFd<'_>>, task: Pid) -> Result<(), NsError> {
    let path = place(&record.name);
    let set = || set(&path, &record.value);
    let done = match (record.kind, inside) {
        (SysctlKind::Ipc, Some(namespace)) => run_in(namespace, || set_inside(&path, &record.value)),
        (SysctlKind::Ipc, None) => Err(Errno::ENOENT.into()),
        (SysctlKind::Pid, _) => return run(task, CloneFlags::CLONE_NEWPID, || born(set)),
        (SysctlKind::User, Some(user)) => namespace::write_inside(Some(user), path.as_ref(), &record.value),
        (SysctlKind::User, None) => set().map_err(io::Error::from),
    };
    done.map_err(|source| NsError::Write {
        path: path.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::{differing, higher, is_from, plain};
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
    fn kernels_are_compared_by_number() {
        let own = ["6.14", "6.18.44", "7.0-rc1", "10.1"].map(|release| is_from(release, (6, 14)));
        let older = ["6.13.9", "6.8.0-45-generic", "5.15", ""].map(|release| is_from(release, (6, 14)));
        assert_eq!((own, older), ([true; 4], [false; 4]));
    }

    #[test]
    fn limits_are_raised_number_by_number() {
        assert_eq!(
            higher("1 500 3 18446744073692774399", "2 400 3 5"),
            "2 500 3 18446744073692774399"
        );
    }
}
