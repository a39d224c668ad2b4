//! A copy of a process's memory as it is at one instant: a child that never runs.
//!
//! The process forks it by its stub. It shares all private memory copy-on-write, so whatever the process does from then on
//! (writes, unmaps, executes, ends), the copy keeps what was there. It has no open files, so that it holds no pipe or
//! connection open; a child without a signal of its end (`exit_signal` 0), which no wait(2) without `__WALL` tells of.
//!
//! Should floe die between the fork and the moment from which the copy ends with floe, the copy runs on in the stub: the
//! next call there is `tkill(2)` of a thread whose number the kernel has put there in the copy alone
//! (CLONE_CHILD_SETTID): its own. In the process itself the number is none.

use crate::{CallHost, HostError, Stopped, TraceError, batch::CallId};
use floe_sys::{Pid, procfs::Status};
use nix::errno::Errno;

/// clone3(2): `struct clone_args`, include/uapi/linux/sched.h.
const CLONE_ARGUMENTS: usize = 11;
/// Of these.
const FLAGS: usize = 0;
const CHILD_TID: usize = 2;
/// No thread has it.
const NOBODY: u64 = u64::MAX;

/// A copy of a process's private memory, which ends when it is dropped or floe does.
#[derive(Debug)]
pub struct MemoryCopy {
    /// `None` once it was ended.
    task: Option<Stopped>,
    pid: Pid,
}

impl MemoryCopy {
    /// The process whose memory it is, as floe sees it.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Ends it. It stays a zombie of its maker's, or of who has adopted it, until that waits for it (wait4(2) with
    /// `__WALL`).
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn end(mut self) -> Result<(), TraceError> {
        self.task.take().map_or(Ok(()), Stopped::kill)
    }
}

impl Drop for MemoryCopy {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.task.take().map(Stopped::kill) {
            tracing::debug!(pid = self.pid.raw(), %error, "a copy of memory that was to end");
        }
    }
}

impl CallHost<'_> {
    /// Makes a copy of the process's memory, which has its files until [`MemoryCopy::leave_files`]; `thread` is one of its threads, `status` was read while it was stopped. The
    /// thread must make its children in the PID namespace that it is in.
    ///
    /// # Errors
    /// [`HostError`]: among others EAGAIN (as many processes as there may be) and ENOMEM.
    pub fn copy(&self, thread: &Stopped, ns_tid: i32, status: &Status) -> Result<MemoryCopy, HostError> {
        let mut batch = self.batch();
        let mut arguments = [0u64; CLONE_ARGUMENTS];
        arguments[FLAGS] = (libc::CLONE_FILES | libc::CLONE_CHILD_SETTID) as u64;
        arguments[CHILD_TID] = batch.place_of_argument(CallId::SECOND, 0);
        let bytes: Vec<u8> = arguments.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let place = batch.data(&bytes);
        batch.call(
            "copy its memory (clone3)",
            libc::SYS_clone3,
            &[place, bytes.len() as u64],
        );
        batch.expect(
            "go on",
            libc::SYS_tkill,
            &[NOBODY, libc::SIGKILL as u64],
            -i64::from(libc::EINVAL),
        );
        let born = self.run_with_birth(thread, ns_tid, status, &mut batch)?;
        let born = born.ok_or(TraceError::Request {
            action: "attach to a copy",
            tid: thread.tid(),
            source: Errno::ECHILD,
        })?;
        let task = born.stop()?.own_as(thread)?;
        let copy = MemoryCopy {
            pid: task.tid(),
            task: Some(task),
        };
        // Of the two that have the memory it is the one to be ended where there is too little.
        if let Err(error) = std::fs::write(format!("/proc/{}/oom_score_adj", copy.pid), "1000") {
            tracing::debug!(pid = copy.pid.raw(), %error, "a copy of memory may outlive its maker");
        }
        if let Some(task) = &copy.task {
            Self::copy_selector(thread, task)?;
        }
        Ok(copy)
    }
}

impl MemoryCopy {
    /// Leaves the files to its maker, with which it shares them so far: nothing is closed, and nobody is told. `host` is the
    /// one that it was made by.
    ///
    /// # Errors
    /// [`TraceError`]: among others ENOMEM.
    pub fn leave_files(&self, host: &CallHost<'_>) -> Result<(), TraceError> {
        let Some(task) = &self.task else { return Ok(()) };
        let all = [0, u64::from(u32::MAX), libc::CLOSE_RANGE_UNSHARE as u64, 0, 0, 0];
        let mut registers = task.registers()?;
        registers.prepare_call(host.arena().single_entry(), libc::SYS_close_range as u64, all);
        task.set_registers(&registers)?;
        task.run_through_call()?;
        match task.registers()?.result() {
            0 => Ok(()),
            error => Err(TraceError::Request {
                action: "leave its files to the maker",
                tid: self.pid,
                source: Errno::from_raw(-error as i32),
            }),
        }
    }
}
