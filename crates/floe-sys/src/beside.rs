//! Processes that share their maker's memory: clone(2) with CLONE_VM, as vfork(2) has it.

use nix::{errno::Errno, sys::wait::waitpid, unistd::Pid};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::null_mut,
};

/// Runs `work` in a process of its own that shares memory and descriptors with the caller, which waits until it has ended: so
/// it may do what the kernel lets only a process of one thread do, as entering a user namespace, and hand back anything. It must
/// not wait for other threads of the caller's to let go of it, nor trace.
///
/// # Errors
/// EAGAIN, ENOMEM; ECANCELED where `work` panicked.
pub fn beside<T>(work: impl FnOnce() -> T) -> Result<T, Errno> {
    /// What the new process finds: its work, and room for what comes of it.
    struct Task<F, T> {
        work: Option<F>,
        result: Option<T>,
    }
    extern "C" fn begin<F: FnOnce() -> T, T>(task: *mut libc::c_void) -> libc::c_int {
        // SAFETY: `beside` passes a task of this type, which outlives this process and which nobody else uses meanwhile.
        let task = unsafe { &mut *task.cast::<Task<F, T>>() };
        if let Some(work) = task.work.take() {
            task.result = catch_unwind(AssertUnwindSafe(work)).ok();
        }
        // SAFETY: ends the process without running its parent's exit handlers.
        unsafe { libc::_exit(0) }
    }
    fn entry<F: FnOnce() -> T, T>(_: &F) -> extern "C" fn(*mut libc::c_void) -> libc::c_int {
        begin::<F, T>
    }
    let entry = entry(&work);
    let mut task = Task {
        work: Some(work),
        result: None,
    };
    let stack = Stack::new()?;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: the process has this stack to itself. The caller stands still until it has ended (CLONE_VFORK), so that
    // thread-local storage, which both have, is used by one of them at a time, and what it borrows outlives it.
    let result = unsafe { libc::clone(entry, stack.end(), flags, (&raw mut task).cast()) };
    let child = Pid::from_raw(Errno::result(result)?);
    while let Err(Errno::EINTR) = waitpid(child, None) {}
    task.result.ok_or(Errno::ECANCELED)
}

/// Memory for a stack, with a page below it that nobody may touch.
struct Stack(*mut libc::c_void);

impl Stack {
    const BYTES: usize = 1 << 20;
    const GUARD: usize = 4096;

    fn new() -> Result<Self, Errno> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let start = unsafe { libc::mmap(null_mut(), Self::BYTES, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let stack = Self(start);
        // SAFETY: the first page of the mapping just made, in which nothing is.
        Errno::result(unsafe { libc::mprotect(start, Self::GUARD, libc::PROT_NONE) })?;
        Ok(stack)
    }

    /// Behind its last byte, where a stack begins.
    fn end(&self) -> *mut libc::c_void {
        self.0.wrapping_byte_add(Self::BYTES)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: who ran on it has ended.
        unsafe { libc::munmap(self.0, Self::BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::beside;
    use nix::{
        errno::Errno,
        sched::{CloneFlags, unshare},
    };

    #[test]
    fn it_does_what_takes_a_process_of_one_thread() {
        let before = std::fs::read_link("/proc/self/ns/user").expect("one's own");
        let told = String::from("handed on");
        let inside = beside(|| {
            unshare(CloneFlags::CLONE_NEWUSER)?;
            let link = std::fs::read_link("/proc/self/ns/user").expect("one's own");
            Ok::<_, Errno>((told + " and back", link))
        });
        let (text, link) = inside.expect("it ran").expect("a user namespace");
        assert_eq!(text, "handed on and back");
        assert_ne!(link, before);
        assert_eq!(std::fs::read_link("/proc/self/ns/user").expect("one's own"), before);
    }

    #[test]
    fn a_panic_is_an_error() {
        assert_eq!(beside(|| panic!("on purpose")), Err::<(), _>(Errno::ECANCELED));
    }
}
