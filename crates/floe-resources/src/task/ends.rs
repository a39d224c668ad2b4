//! How children of a process ended that wait to be reaped. /proc/PID/stat shows it only to who might trace them, which of
//! those that were not dumpable the host's root alone might (proc_pid_stat(5)); their parent may always ask, by waitid(2).

use super::dump::{DumpError, HeldProcess};
use crate::tree::{FoundProcess, FoundTree};
use floe_sys::{
    Pid,
    namespace::is_in_first_user,
    procfs::{ProcError, Status},
};
use floe_tracee::CallHost;
use std::collections::HashMap;

const P_PID: u64 = 1;
/// WEXITED, WNOHANG, WNOWAIT and __WALL: those that have ended stay.
const OPTIONS: u64 = 0x4100_0005;

/// The ends of zombies, as wait statuses, where /proc may keep them to itself.
#[derive(Debug, Default)]
pub struct Ends {
    is_told_all: bool,
    known: HashMap<Pid, i32>,
}

impl Ends {
    /// None yet.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn none_yet() -> Result<Self, ProcError> {
        Ok(Self {
            is_told_all: is_in_first_user()?,
            known: HashMap::new(),
        })
    }

    /// Has a process tell of its children.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn ask(&mut self, held: &HeldProcess<'_>, tree: &FoundTree) -> Result<(), DumpError> {
        let is_hidden = |child: &&FoundProcess| {
            child.is_zombie() && child.ns_ppid == held.found.ns_pid && child.stat.exit_code == 0
        };
        if self.is_told_all || !tree.processes.iter().any(|child| is_hidden(&child)) {
            return Ok(());
        }
        let (leader, found) = (held.threads[0], held.found);
        let host = CallHost::new(leader, found.own_pid(), held.mappings)?;
        for child in tree.processes.iter().filter(is_hidden) {
            let Some(called) = tree.seen_from(found.pid_namespace, child) else {
                continue;
            };
            let mut batch = host.batch();
            let told = batch.room(128);
            let arguments = [P_PID, called as u64, told, OPTIONS, 0];
            batch.call("ask how a child ended", libc::SYS_waitid, &arguments);
            let status = Status::read(&format!("/proc/{}/task/{}", found.pid, leader.tid()))?;
            host.run(leader, found.threads[0].own_tid(), &status, &mut batch)?;
            // siginfo_t of SIGCHLD: code at byte 8, status at byte 24.
            let word = |at: u64| i32::from_ne_bytes(batch.bytes(told + at, 4).try_into().expect("asked for 4 bytes"));
            let end = match word(8) {
                libc::CLD_EXITED => word(24) << 8,
                libc::CLD_DUMPED => word(24) | 0x80,
                _ => word(24),
            };
            self.known.insert(child.pid, end);
        }
        host.remove()?;
        Ok(())
    }

    /// How a zombie ended.
    pub(super) fn of(&self, zombie: &FoundProcess) -> i32 {
        self.known.get(&zombie.pid).copied().unwrap_or(zombie.stat.exit_code)
    }
}
