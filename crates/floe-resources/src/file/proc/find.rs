//! Which file of /proc a descriptor is: by its path, where the path leads to it, or to a task that has ended.

use super::Body;
use crate::{
    file::FoundFile,
    mm::{Contents, Place},
    ns::pids::shown_by,
    tree::FoundTree,
};
use floe_sys::{Pid, procfs::Stat};
use std::collections::HashMap;

/// What /proc calls the tasks of the tree, threads and zombies too, in each of its mount namespaces.
#[derive(Debug)]
pub struct Shown(Vec<ShownBy>);

#[derive(Debug)]
struct ShownBy {
    /// The position of the PID namespace among the tree's.
    namespace: usize,
    numbers: HashMap<Pid, i32>,
}

impl Shown {
    /// In the /proc of the tree's mounts.
    pub fn find(contents: &Contents, tree: &FoundTree) -> Self {
        let shown = |space| {
            let namespace = shown_by(&contents.inside(space, b"/proc"), tree);
            ShownBy {
                namespace,
                numbers: tree.all_seen_from(namespace),
            }
        };
        Self(contents.spaces.numbers().map(shown).collect())
    }
}

/// Why a file can't be carried, and what to do.
type Reason = (&'static str, &'static str);

/// Folders whose files stand for devices, or hold something for who opened them.
const STATEFUL: [&[u8]; 5] = [b"asound", b"bus", b"driver", b"mtrr", b"scsi"];

pub(super) fn find(file: &FoundFile, contents: &Contents, tasks: &Shown) -> Result<Body, Reason> {
    if !is_inside(&file.link) {
        return Err(("it is of a /proc that is mounted elsewhere", "use the one at /proc"));
    }
    let space = file.mount_namespace(contents);
    let (place, tasks) = (file.place(contents), &tasks.0[space as usize]);
    let path = match &place {
        Place::Named(path) | Place::Deleted(path) | Place::Elsewhere(path) => path.clone(),
    };
    let Some(task) = task_of(&path) else {
        return about_system(file, place);
    };
    // Those of net lose their path whenever somebody else looks for them by it.
    let is_there =
        matches!(place, Place::Named(_)) || (is_of_network(&path) && is_known(task, (contents, space), tasks));
    if !is_there {
        let ended = last_task_of(&path).ok_or(("it is gone from /proc", "close it"))?;
        if tasks.namespace != 0 {
            return Err((
                "it is about a process of a PID namespace below the tree's that has ended",
                "close it",
            ));
        }
        return Ok(Body {
            path,
            ended: Some(ended),
        });
    }
    if !is_known(task, (contents, space), tasks) {
        return Err(("it is about a process that is not in the tree", "close it"));
    }
    Ok(Body { path, ended: None })
}

/// Whether the task with this number in /proc is the tree's.
fn is_known(task: i32, (contents, space): (&Contents, u32), tasks: &ShownBy) -> bool {
    let own = contents.inside(space, format!("/proc/{task}").as_bytes());
    let seen = Stat::read(&own.display().to_string());
    let host = tasks.numbers.iter().find(|(_, own)| **own == task);
    let there = host.map(|(host, _)| Stat::of(*host));
    match (seen, there) {
        (Ok(seen), Some(Ok(there))) => (seen.starttime, seen.comm) == (there.starttime, there.comm),
        _ => false,
    }
}

fn is_of_network(path: &[u8]) -> bool {
    let parts: Vec<&[u8]> = names(path).take(4).collect();
    matches!(parts[..], [_, b"net", ..] | [_, b"task", _, b"net"])
}

fn about_system(file: &FoundFile, place: Place) -> Result<Body, Reason> {
    let Place::Named(path) = place else {
        return Err(("it is gone from /proc", "close it"));
    };
    let first = names(&path).next().unwrap_or_default().to_vec();
    if STATEFUL.contains(&first.as_slice()) {
        return Err(("it stands for a device", "close it"));
    }
    let is_read = file.flags() as i32 & libc::O_ACCMODE == libc::O_RDONLY;
    if first == b"pressure" && !is_read {
        return Err(("what it was told to watch can't be read back", "close it"));
    }
    Ok(Body { path, ended: None })
}

/// The names behind /proc.
fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    let rest = path.strip_prefix(b"/proc").unwrap_or_default();
    rest.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
}

pub(super) fn is_inside(path: &[u8]) -> bool {
    path == b"/proc" || path.starts_with(b"/proc/")
}

fn number(name: &[u8]) -> Option<i32> {
    let text = std::str::from_utf8(name).ok()?;
    text.parse().ok().filter(|number| *number > 0)
}

/// The process or thread whose folder a path leads into.
pub(super) fn task_of(path: &[u8]) -> Option<i32> {
    number(names(path).next()?)
}

/// The thread in whose folder it is, or else the process.
pub(super) fn last_task_of(path: &[u8]) -> Option<i32> {
    let mut parts = names(path);
    let process = number(parts.next()?)?;
    match (parts.next(), parts.next()) {
        (Some(b"task"), Some(thread)) => number(thread),
        _ => Some(process),
    }
}

/// The path of the same file about another task, which is a process.
pub(super) fn about_another(path: &[u8], task: i32) -> Vec<u8> {
    let parts: Vec<&[u8]> = names(path).collect();
    let (front, rest) = match parts[..] {
        [_, b"task", _, ref rest @ ..] => (format!("/proc/{task}/task/{task}"), rest),
        [_, ref rest @ ..] => (format!("/proc/{task}"), rest),
        [] => ("/proc".to_owned(), &[][..]),
    };
    rest.iter().fold(front.into_bytes(), |mut path, name| {
        path.push(b'/');
        path.extend_from_slice(name);
        path
    })
}

#[cfg(test)]
mod tests {
    use super::{about_another, is_inside, is_of_network, last_task_of, task_of};

    #[test]
    fn tasks_are_found_in_paths() {
        assert_eq!(
            (task_of(b"/proc/12/status"), last_task_of(b"/proc/12/status")),
            (Some(12), Some(12))
        );
        assert_eq!(last_task_of(b"/proc/12/task/34/comm"), Some(34));
        assert_eq!(last_task_of(b"/proc/12/task"), Some(12));
        assert_eq!((task_of(b"/proc/sys/vm"), task_of(b"/proc")), (None, None));
        assert_eq!(task_of(b"/proc/-3/status"), None);
        assert!(is_of_network(b"/proc/1/net/tcp") && is_of_network(b"/proc/1/task/2/net/tcp"));
        assert!(!is_of_network(b"/proc/1/netty") && !is_of_network(b"/proc/1/status"));
        assert!(is_inside(b"/proc") && is_inside(b"/proc/1") && !is_inside(b"/process/1"));
    }

    #[test]
    fn paths_are_turned_to_other_tasks() {
        assert_eq!(about_another(b"/proc/12/net/tcp", 7), b"/proc/7/net/tcp");
        assert_eq!(about_another(b"/proc/12/task/34/comm", 7), b"/proc/7/task/7/comm");
        assert_eq!(about_another(b"/proc/12/task", 7), b"/proc/7/task");
        assert_eq!(about_another(b"/proc/12", 7), b"/proc/7");
    }
}
