//! Labels that are put on tasks from outside: the login that audit notes, and those of security modules. A new task has
//! its parent's, so restored ones have floe's.

use super::restore::RestoreError;
use crate::{
    channel::Channel,
    refusal::Refusals,
    tree::{FoundProcess, FoundTree},
};
use floe_sys::{
    Pid, parallel,
    procfs::{self, ProcError},
};
use floe_tracee::{Puppet, Script};
use std::{fs::OpenOptions, io, os::fd::AsFd};

/// No login.
const UNSET: u32 = u32::MAX;

/// Files below /proc/PID/task/TID/attr in which a security module tells what a task is.
const IDENTITIES: [&str; 3] = ["current", "apparmor/current", "smack/current"];
/// And what its next files, keys, sockets and programs are to be.
const INTENTIONS: [&str; 5] = ["exec", "fscreate", "keycreate", "sockcreate", "apparmor/exec"];

/// The login that a process descends from (/proc/PID/loginuid); 4294967295 where there is none.
///
/// # Errors
/// [`ProcError`].
pub fn login_of(directory: &str) -> Result<u32, ProcError> {
    let path = format!("{directory}/loginuid");
    match procfs::read_text(&path) {
        Ok(text) => text.trim().parse().map_err(|_| ProcError::Field {
            path,
            field: "the number",
        }),
        Err(ProcError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(UNSET),
        Err(error) => Err(error),
    }
}

/// The login that all of a tree descends from; a finding for each process that descends from another one.
///
/// # Errors
/// [`ProcError`].
pub fn login(tree: &FoundTree, refusals: &mut Refusals) -> Result<u32, ProcError> {
    let Some(root) = tree.root().filter(|root| !root.is_zombie()) else {
        return Ok(UNSET);
    };
    let common = login_of(&format!("/proc/{}", root.pid))?;
    let tasks = tree.tasks();
    let logins = parallel::map(&tasks, parallel::FEW_FILES, |(process, thread)| {
        login_of(&task(process, thread.tid))
    });
    for ((process, _), login) in tasks.into_iter().zip(logins) {
        let login = login?;
        if login != common {
            refusals.add(
                Some(&process.subject()),
                format!("login {login} of audit (loginuid), where the tree's root has {common}"),
                "a login is carried for a tree as a whole",
                "checkpoint the sessions of each login by themselves",
            );
        }
    }
    Ok(common)
}

/// Gives the seed the login of the image, before it makes any task: they inherit it. The kernel chooses a new number for
/// the session of audit.
///
/// # Errors
/// [`RestoreError`]: EPERM where floe descends from another login and lacks CAP_AUDIT_CONTROL.
pub fn restore_login(seed: &Puppet, channel: &mut Channel, wanted: u32) -> Result<(), RestoreError> {
    let directory = format!("/proc/{}", seed.tid());
    if login_of(&directory)? == wanted {
        return Ok(());
    }
    let outside = |source| RestoreError::Outside {
        what: "login",
        tid: seed.tid(),
        source,
    };
    // A task may write its own alone, so it is handed the file.
    let file = OpenOptions::new()
        .write(true)
        .open(format!("{directory}/loginuid"))
        .map_err(outside)?;
    let mut script = Script::new(seed);
    let number = channel
        .give(&mut script, &[file.as_fd()])
        .map_err(|error| outside(io::Error::other(error)))?[0] as u64;
    let text = wanted.to_string();
    let batch = script.reserve(2, 64)?;
    let place = batch.data(text.as_bytes());
    batch.call(
        "set the login",
        libc::SYS_pwrite64,
        &[number, place, text.len() as u64, 0],
    );
    batch.call("close the login file", libc::SYS_close, &[number]);
    script.run()?;
    Ok(())
}

/// Adds a finding for every task that a security module labels otherwise than floe.
///
/// # Errors
/// [`ProcError`].
pub fn refuse_labels(tree: &FoundTree, refusals: &mut Refusals) -> Result<(), ProcError> {
    for file in IDENTITIES {
        // Where no module answers here, none does for others.
        let Some(own) = label("/proc/self", file)? else {
            continue;
        };
        for process in tree.living() {
            for thread in &process.threads {
                let theirs = label(&task(process, thread.tid), file)?.unwrap_or_default();
                if theirs != own {
                    refuse(
                        process,
                        format!("security label {theirs} of task {} ({file})", thread.ns_tid),
                        &format!("a restored task gets floe's own label, {own}"),
                        refusals,
                    );
                }
            }
        }
    }
    for file in INTENTIONS {
        if label("/proc/self", file)?.is_none() {
            continue;
        }
        for process in tree.living() {
            for thread in &process.threads {
                let theirs = label(&task(process, thread.tid), file)?.unwrap_or_default();
                if !theirs.is_empty() {
                    let object = format!("security label {theirs} to come of task {} ({file})", thread.ns_tid);
                    refuse(process, object, "it is not carried yet", refusals);
                }
            }
        }
    }
    Ok(())
}

fn task(process: &FoundProcess, tid: Pid) -> String {
    format!("/proc/{}/task/{tid}", process.pid)
}

fn refuse(process: &FoundProcess, object: String, reason: &str, refusals: &mut Refusals) {
    let advice = "run floe with the same label as the workload, or the workload without one";
    refusals.add(Some(&process.subject()), object, reason, advice);
}

/// What a security module says; `None` where there is none that uses the file.
fn label(directory: &str, file: &str) -> Result<Option<String>, ProcError> {
    let read = procfs::read(&format!("{directory}/attr/{file}"));
    match read {
        Ok(bytes) => Ok(Some(text(&bytes))),
        Err(ProcError::Read { source, .. })
            if source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::EINVAL) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches(['\0', '\n']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn labels_end_where_modules_end_them() {
        assert_eq!(text(b"unconfined\n"), "unconfined");
        assert_eq!(text(b"system_u:system_r:init_t:s0\0"), "system_u:system_r:init_t:s0");
        assert_eq!(text(b""), "");
    }
}
