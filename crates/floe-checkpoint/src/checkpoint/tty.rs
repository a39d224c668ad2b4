//! The terminal that a tree was started on, whose master is outside of it: `--tty current`. It is saved as the sandbox's own,
//! so the restored tree has one that the monitor holds, and whoever stays with the sandbox has it on their own terminal.
//! A tree that is a shell's job is in the shell's session, whose leader is outside: then that session becomes PID 1's.

use floe_image::record::{NsPid, ProcessRecord, TerminalLink};
use floe_resources::{
    file::{ConsoleLinks, terminal::slave_path},
    tree::{FoundProcess, FoundTree},
};
use floe_sys::{Pid, procfs::Stat};
use std::path::PathBuf;

/// PID 1 of the new sandbox, where the tree had none.
const INIT: NsPid = NsPid(1);

/// A terminal that can't be taken so.
#[derive(Debug, thiserror::Error)]
pub enum TtyError {
    /// /proc.
    #[error(transparent)]
    Proc(#[from] floe_sys::procfs::ProcError),
    /// There is none.
    #[error("process {0} has no pseudo-terminal, neither for its session nor as a standard stream")]
    None(Pid),
}

/// The links of a tree whose terminal is to count as its own: that of its root's session, or else one of its root's
/// standard streams.
///
/// # Errors
/// [`TtyError`].
pub fn terminal_of(root: Pid) -> Result<ConsoleLinks, TtyError> {
    let of_session = slave_path(device(Stat::of(root)?.tty_nr));
    let of_streams = || {
        let links = (0..3).filter_map(|number| std::fs::read_link(format!("/proc/{root}/fd/{number}")).ok());
        links.map(PathBuf::into_os_string).find_map(|link| {
            let link = link.into_string().ok()?;
            link.starts_with("/dev/pts/").then_some(link)
        })
    };
    let path = of_session.or_else(of_streams).ok_or(TtyError::None(root))?;
    Ok(ConsoleLinks {
        terminal: Some(path.into_bytes()),
        ..ConsoleLinks::default()
    })
}

/// A device's number as /proc/PID/stat has it (new_encode_dev, linux/kdev_t.h): major and minor.
fn device(number: i32) -> (u64, u64) {
    let number = number as u32;
    let (major, minor) = (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xf_ff00);
    (major.into(), minor.into())
}

/// Whether a process has the terminal with this path for its session.
pub fn has_for_session(found: &FoundProcess, links: &ConsoleLinks) -> bool {
    let own = slave_path(device(found.stat.tty_nr));
    own.is_some() && own.map(String::into_bytes) == links.terminal
}

/// The session that has the terminal and whose leader is outside; its number in the tree's namespace.
pub fn session_from_outside(tree: &FoundTree, links: &ConsoleLinks) -> Option<i32> {
    let root = tree.root().filter(|root| has_for_session(root, links))?;
    let has_leader = tree.living().any(|process| process.ns_pid == root.ns_sid);
    (root.ns_sid > 0 && !has_leader).then_some(root.ns_sid)
}

/// Has the processes of the outside session `sid` be in that of PID 1. The root, whose parent is PID 1, tells of the
/// terminal in its leader's place.
pub fn move_session(records: &mut [ProcessRecord], sid: i32, link: &TerminalLink) {
    for record in records.iter_mut().filter(|record| record.sid.0 == sid) {
        record.sid = INIT;
        if record.ppid.0 == 0 {
            record.terminal = Some(link.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::device;

    #[test]
    fn numbers_of_devices_are_taken_apart() {
        assert_eq!(device(0), (0, 0));
        assert_eq!(device(0x8803), (136, 3));
        // As /proc/self/stat told it of /dev/pts/300.
        assert_eq!(device(0x0010_882c), (136, 300));
    }
}
