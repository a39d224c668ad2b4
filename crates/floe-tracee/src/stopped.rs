//! Threads under ptrace as types: [`Seized`] runs or is about to stop, [`Stopped`] stands still.
//!
//! A transition consumes the value. Dropping either undoes: a task of an observed tree goes on by itself, without EINTR
//! from a call that only its being stopped interrupted (its registers must be its own again by then;
//! [`CallHost`](crate::CallHost) sees to that); a task that floe made ends. Neither can be
//! sent to another thread: ptrace knows one tracer thread.

use crate::arch::{GENERAL_BYTES, Registers};
use floe_sys::{
    Pid, procfs,
    ptrace::{
        self, DispatchConfiguration, NT_PRFPREG, NT_PRSTATUS, NT_X86_XSTATE, Queue, RseqConfiguration, SIGINFO_BYTES,
        Wait,
    },
};
use nix::errno::Errno;
use std::{
    cell::Cell,
    marker::PhantomData,
    time::{Duration, Instant},
};

/// Larger than any XSAVE area today (AMX: 11 KiB).
const XSTATE_ROOM: usize = 32 << 10;
const FXSAVE_BYTES: usize = 512;

/// How long a thread may stay in a sleep that nothing interrupts before that is an error.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// What ptrace should report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Options {
    /// A tree that lives on when floe ends.
    Observe,
    /// Tasks that floe made and that must not outlive it before they are complete; their children likewise.
    Own,
}

impl Options {
    const fn bits(self) -> i32 {
        match self {
            Self::Observe => libc::PTRACE_O_TRACESYSGOOD,
            Self::Own => {
                libc::PTRACE_O_TRACESYSGOOD
                    | libc::PTRACE_O_EXITKILL
                    | libc::PTRACE_O_TRACEFORK
                    | libc::PTRACE_O_TRACECLONE
                    | libc::PTRACE_O_TRACEEXEC
            }
        }
    }
}

/// A ptrace request that failed.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The kernel refused.
    #[error("{action} of task {tid}")]
    Request {
        /// What was asked.
        action: &'static str,
        /// Of whom.
        tid: Pid,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// It ended.
    #[error("task {tid} ended while it was under floe's control (wait status {status:#x})")]
    Ended {
        /// Who.
        tid: Pid,
        /// Wait status.
        status: i32,
    },
    /// It stopped for another reason than the expected one.
    #[error("task {tid} stopped in an unexpected way: {wait:?}")]
    Unexpected {
        /// Who.
        tid: Pid,
        /// How.
        wait: Wait,
    },
    /// It does not stop.
    #[error("task {tid} does not stop: it is in an uninterruptible sleep ({place})")]
    Uninterruptible {
        /// Who.
        tid: Pid,
        /// Where in the kernel.
        place: String,
    },
}

/// A thread that could not be seized.
#[derive(Debug, thiserror::Error)]
#[error("seize task {tid}")]
pub struct SeizeError {
    /// Who.
    pub tid: Pid,
    /// EPERM: not allowed, or somebody else traces it; ESRCH: gone.
    #[source]
    pub source: Errno,
}

type NotSend = PhantomData<*const ()>;

/// A traced thread that is not known to stand still.
#[derive(Debug)]
pub struct Seized {
    tid: Pid,
    options: Options,
    armed: bool,
    not_send: NotSend,
}

/// A traced thread that stands still.
#[derive(Debug)]
pub struct Stopped {
    tid: Pid,
    /// The signal of the job-control stop it was in, or 0.
    stop_signal: i32,
    /// Whether a SIGSTOP came while it was held, which is to be sent again when it goes on.
    stop_again: Cell<bool>,
    /// Its registers, where they have been read since it last ran or was given others.
    registers: Cell<Option<Registers>>,
    options: Options,
    /// Whether its seccomp mode and filters are suspended.
    unconfined: Cell<bool>,
    armed: bool,
    not_send: NotSend,
}

impl Seized {
    /// Begins to trace a thread and asks it to stop.
    ///
    /// # Errors
    /// [`SeizeError`].
    pub fn new(tid: Pid, options: Options) -> Result<Self, SeizeError> {
        let wrap = |source| SeizeError { tid, source };
        ptrace::seize(tid, options.bits()).map_err(wrap)?;
        let seized = Self {
            tid,
            options,
            armed: true,
            not_send: PhantomData,
        };
        ptrace::interrupt(tid).map_err(wrap)?;
        Ok(seized)
    }

    /// Begins to trace a thread without stopping it.
    ///
    /// # Errors
    /// [`SeizeError`].
    pub fn running(tid: Pid, options: Options) -> Result<Self, SeizeError> {
        ptrace::seize(tid, options.bits()).map_err(|source| SeizeError { tid, source })?;
        Ok(Self {
            tid,
            options,
            armed: true,
            not_send: PhantomData,
        })
    }

    /// Takes up a thread that the kernel attached because its creator is traced.
    #[must_use]
    pub fn born(tid: Pid) -> Self {
        Self {
            tid,
            options: Options::Own,
            armed: true,
            not_send: PhantomData,
        }
    }

    /// The thread.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Waits until it stands still. Signals that come first are delivered first.
    ///
    /// # Errors
    /// [`TraceError`]; `Uninterruptible` after ten seconds.
    pub fn stop(mut self) -> Result<Stopped, TraceError> {
        let deadline = Instant::now() + STOP_DEADLINE;
        let mut pause = Duration::from_micros(20);
        loop {
            let wait = ptrace::wait(self.tid, false).map_err(|source| self.failed("wait", source))?;
            match wait {
                Some(Wait::Event(libc::PTRACE_EVENT_STOP, signal)) => {
                    self.armed = false;
                    let stop_signal = if signal == libc::SIGTRAP { 0 } else { signal };
                    return Ok(Stopped::new(self.tid, stop_signal, self.options));
                }
                Some(Wait::Signal(signal)) => {
                    ptrace::resume(self.tid, signal).map_err(|source| self.failed("resume", source))?;
                }
                Some(Wait::Ended(status)) => {
                    self.armed = false;
                    return Err(TraceError::Ended { tid: self.tid, status });
                }
                Some(wait @ (Wait::Call | Wait::Event(..))) => {
                    return Err(TraceError::Unexpected { tid: self.tid, wait });
                }
                None if Instant::now() > deadline => {
                    let place = procfs::read_text(&format!("/proc/{}/wchan", self.tid)).unwrap_or_default();
                    return Err(TraceError::Uninterruptible { tid: self.tid, place });
                }
                None => {
                    // waitpid has no time-out, and a task in an uninterruptible sleep must not hang floe.
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(1));
                }
            }
        }
    }

    /// Waits for an exec to complete; the thread then stands behind it, where calls can't be run in it yet.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn stop_at_exec(mut self) -> Result<Stopped, TraceError> {
        loop {
            let wait = ptrace::wait(self.tid, true).map_err(|source| self.failed("wait", source))?;
            match wait {
                Some(Wait::Event(libc::PTRACE_EVENT_EXEC, _)) => {
                    self.armed = false;
                    return Ok(Stopped::new(self.tid, 0, self.options));
                }
                Some(Wait::Signal(signal)) => {
                    ptrace::resume(self.tid, signal).map_err(|source| self.failed("resume", source))?;
                }
                Some(Wait::Ended(status)) => {
                    self.armed = false;
                    return Err(TraceError::Ended { tid: self.tid, status });
                }
                Some(_) | None => {
                    ptrace::resume(self.tid, 0).map_err(|source| self.failed("resume", source))?;
                }
            }
        }
    }

    fn failed(&self, action: &'static str, source: Errno) -> TraceError {
        TraceError::Request {
            action,
            tid: self.tid,
            source,
        }
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if self.options == Options::Own {
            end(self.tid);
            return;
        }
        // A running tracee can't be detached; it has to stop first. Signals that come before are delivered.
        if ptrace::interrupt(self.tid).is_err() {
            return;
        }
        let taken_over = Self {
            tid: self.tid,
            options: self.options,
            armed: false,
            not_send: PhantomData,
        };
        match taken_over.stop() {
            Ok(stopped) => drop(stopped),
            Err(error) => tracing::debug!(tid = self.tid.raw(), %error, "a task that was to be released"),
        }
    }
}

/// Ends a task that floe made and that did not become what it was to be.
fn end(tid: Pid) {
    if let Err(error) = nix::sys::signal::kill(tid.nix(), nix::sys::signal::Signal::SIGKILL) {
        tracing::debug!(tid = tid.raw(), %error, "a task that was to end is gone");
    }
}

impl Stopped {
    fn new(tid: Pid, stop_signal: i32, options: Options) -> Self {
        Self {
            tid,
            stop_signal,
            stop_again: Cell::new(false),
            registers: Cell::new(None),
            options,
            unconfined: Cell::new(false),
            armed: true,
            not_send: PhantomData,
        }
    }

    /// Sets what ptrace reports: what its options say, and these.
    fn set_options(&self, further: i32, action: &'static str) -> Result<(), TraceError> {
        let confinement = if self.unconfined.get() {
            libc::PTRACE_O_SUSPEND_SECCOMP
        } else {
            0
        };
        ptrace::set_options(self.tid, self.options.bits() | confinement | further).map_err(|e| self.failed(action, e))
    }

    /// Whether the kernel attaches tasks that it makes to floe from now on, as it does for those that floe made.
    pub(crate) fn attach_children(&self, attach: bool) -> Result<(), TraceError> {
        let births = libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACECLONE;
        self.set_options(if attach { births } else { 0 }, "attach children")
    }

    /// Takes over a task that the kernel attached because its creator is traced, but that has not got the options of one
    /// of floe's own: from now on it ends with floe.
    pub(crate) fn own_as(self, creator: &Self) -> Result<Self, TraceError> {
        self.unconfined.set(creator.unconfined.get());
        self.set_options(0, "own")?;
        Ok(self)
    }

    /// Ends it, and collects it as its tracer does; its parent still sees a zombie.
    pub(crate) fn kill(mut self) -> Result<(), TraceError> {
        self.armed = false;
        end(self.tid);
        let deadline = Instant::now() + STOP_DEADLINE;
        loop {
            match self.peek() {
                Err(TraceError::Ended { .. }) => return Ok(()),
                // Version 1 of cgroups lets nobody die who is frozen. It ends with floe.
                Ok(None) if Instant::now() > deadline => {
                    let place = "frozen".to_owned();
                    return Err(TraceError::Uninterruptible { tid: self.tid, place });
                }
                Ok(None) => std::thread::sleep(Duration::from_micros(50)),
                // It was on its way to this stop when the signal came.
                Ok(Some(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The thread.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// The signal of the job-control stop that the thread was found in, or 0.
    #[must_use]
    pub fn stop_signal(&self) -> i32 {
        self.stop_signal
    }

    fn failed(&self, action: &'static str, source: Errno) -> TraceError {
        TraceError::Request {
            action,
            tid: self.tid,
            source,
        }
    }

    /// The general registers.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn registers(&self) -> Result<Registers, TraceError> {
        if let Some(registers) = self.registers.get() {
            return Ok(registers);
        }
        let mut bytes = [0; GENERAL_BYTES];
        let got = ptrace::registers(self.tid, NT_PRSTATUS, &mut bytes).map_err(|e| self.failed("read registers", e))?;
        let registers =
            Registers::from_bytes(&bytes[..got]).ok_or_else(|| self.failed("read registers", Errno::EINVAL))?;
        self.registers.set(Some(registers));
        Ok(registers)
    }

    /// Sets the general registers.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn set_registers(&self, registers: &Registers) -> Result<(), TraceError> {
        self.registers.set(None);
        ptrace::set_registers(self.tid, NT_PRSTATUS, &registers.to_bytes())
            .map_err(|e| self.failed("write registers", e))
    }

    /// The whole XSAVE area; on a processor without XSAVE that of FXSAVE, 512 bytes.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn extended(&self) -> Result<Vec<u8>, TraceError> {
        let mut bytes = [0; XSTATE_ROOM];
        let got = match ptrace::registers(self.tid, NT_X86_XSTATE, &mut bytes) {
            Err(Errno::ENODEV) => ptrace::registers(self.tid, NT_PRFPREG, &mut bytes),
            got => got,
        };
        let got = got.map_err(|e| self.failed("read xstate", e))?;
        Ok(bytes[..got].to_vec())
    }

    /// Sets what [`Stopped::extended`] reads, of the same size.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn set_extended(&self, bytes: &[u8]) -> Result<(), TraceError> {
        let set = if bytes.len() == FXSAVE_BYTES {
            NT_PRFPREG
        } else {
            NT_X86_XSTATE
        };
        ptrace::set_registers(self.tid, set, bytes).map_err(|e| self.failed("write xstate", e))
    }

    /// The blocked signals (within sigsuspend and its like, those blocked behind the call).
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn signal_mask(&self) -> Result<u64, TraceError> {
        ptrace::signal_mask(self.tid).map_err(|e| self.failed("read signal mask", e))
    }

    /// Sets the blocked signals.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn set_signal_mask(&self, mask: u64) -> Result<(), TraceError> {
        ptrace::set_signal_mask(self.tid, mask).map_err(|e| self.failed("write signal mask", e))
    }

    /// Copies a queue of pending signals.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn pending(&self, queue: Queue) -> Result<Vec<[u8; SIGINFO_BYTES]>, TraceError> {
        ptrace::pending_signals(self.tid, queue).map_err(|e| self.failed("read pending signals", e))
    }

    /// Its seccomp filters, the oldest first: program and flags of each, as [`ptrace::seccomp_filter`] gives them.
    ///
    /// # Errors
    /// [`TraceError::Request`]; EACCES without CAP_SYS_ADMIN in the first user namespace.
    pub fn seccomp_filters(&self) -> Result<Vec<(Vec<u8>, u64)>, TraceError> {
        let failed = |source| self.failed("read a seccomp filter", source);
        let mut filters = Vec::new();
        loop {
            match ptrace::seccomp_filter(self.tid, filters.len()) {
                Ok(program) => {
                    let flags = ptrace::seccomp_filter_flags(self.tid, filters.len()).map_err(failed)?;
                    filters.push((program, flags));
                }
                Err(Errno::ENOENT) => return Ok(filters),
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Lets no seccomp mode or filter stand in the way of its calls for as long as it is traced; nor in that of threads
    /// and processes that it makes meanwhile. The kernel ends this with the tracing, also when floe dies.
    ///
    /// # Errors
    /// [`TraceError::Request`]; EPERM without CAP_SYS_ADMIN in the first user namespace, or where floe has filters
    /// itself.
    pub fn suspend_seccomp(&self) -> Result<(), TraceError> {
        let before = self.unconfined.replace(true);
        let suspended = self.set_options(0, "suspend seccomp");
        if suspended.is_err() {
            self.unconfined.set(before);
        }
        suspended
    }

    /// By what rule its system calls are turned into signals (syscall user dispatch); `None` where they are not.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn dispatch(&self) -> Result<Option<DispatchConfiguration>, TraceError> {
        let found = ptrace::dispatch_configuration(self.tid)
            .map_err(|source| self.failed("read syscall user dispatch", source))?;
        Ok((found.mode != 0).then_some(found))
    }

    /// Turns its system calls into signals from now on.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn set_dispatch(&self, configuration: &DispatchConfiguration) -> Result<(), TraceError> {
        ptrace::set_dispatch_configuration(self.tid, configuration)
            .map_err(|source| self.failed("set syscall user dispatch", source))
    }

    /// The rseq registration; `None` where there is none.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn rseq(&self) -> Result<Option<RseqConfiguration>, TraceError> {
        let found = ptrace::rseq_configuration(self.tid).map_err(|e| self.failed("read rseq registration", e))?;
        Ok((found.address != 0).then_some(found))
    }

    /// Waits for a thread that runs to come to the next signal that is about to be delivered, which must be `signal`; that
    /// is then dropped. Tasks that it makes on the way are told to `observe`.
    pub(crate) fn comes_to_signal(&self, signal: i32, mut observe: impl FnMut(Pid)) -> Result<(), TraceError> {
        loop {
            match self.wait()? {
                Wait::Signal(got) if got == signal => return Ok(()),
                Wait::Event(libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_CLONE, _) => observe(self.born()?),
                // A job-control stop in force reports itself again; the thread runs on under its tracer.
                Wait::Event(libc::PTRACE_EVENT_STOP, _) => {}
                // It can't be blocked.
                Wait::Signal(libc::SIGSTOP) => self.stop_again.set(true),
                wait => return Err(TraceError::Unexpected { tid: self.tid, wait }),
            }
            self.resume(0)?;
        }
    }

    /// Lets it run through one whole system call.
    pub(crate) fn run_through_call(&self) -> Result<(), TraceError> {
        self.run_through_calls(1, |_| {})
    }

    /// Lets it run through so many system calls, whatever lies between them. Tasks that it makes on the way are told to
    /// `observe`.
    pub(crate) fn run_through_calls(&self, calls: usize, mut observe: impl FnMut(Pid)) -> Result<(), TraceError> {
        for _entry_then_exit in 0..2 * calls {
            self.resume_to_call(0)?;
            loop {
                match self.wait()? {
                    Wait::Call => break,
                    Wait::Event(libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_CLONE, _) => {
                        observe(self.born()?);
                        self.resume_to_call(0)?;
                    }
                    Wait::Event(libc::PTRACE_EVENT_STOP, _) => self.resume_to_call(0)?,
                    Wait::Signal(libc::SIGSTOP) => {
                        self.stop_again.set(true);
                        self.resume_to_call(0)?;
                    }
                    wait => return Err(TraceError::Unexpected { tid: self.tid, wait }),
                }
            }
        }
        Ok(())
    }

    /// The task that it has just made.
    fn born(&self) -> Result<Pid, TraceError> {
        let id = ptrace::event_message(self.tid).map_err(|e| self.failed("read event", e))?;
        Ok(Pid::new(id as i32))
    }

    /// Delivers a stop signal, which must not be blocked, to a thread that stands before the delivery of another one;
    /// waits until its process stands in a job-control stop.
    ///
    /// # Errors
    /// [`TraceError`]; `Unexpected` where the kernel drops the signal, as it does in an orphaned process group.
    pub(crate) fn stop_by_job_control(&mut self, signal: i32) -> Result<(), TraceError> {
        // Where the signal is dropped the thread comes to its next system call and no further.
        self.resume_to_call(signal)?;
        match self.wait()? {
            Wait::Event(libc::PTRACE_EVENT_STOP, got) if got == signal => {
                self.stop_signal = signal;
                Ok(())
            }
            wait => Err(TraceError::Unexpected { tid: self.tid, wait }),
        }
    }

    /// Lets it run, delivering `signal` unless that is 0, to its end, which must come at once, and reaps it as a tracer
    /// does.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn wait_for_end(mut self, signal: i32) -> Result<i32, TraceError> {
        self.resume(signal)?;
        loop {
            match self.wait() {
                Err(TraceError::Ended { status, .. }) => {
                    self.armed = false;
                    return Ok(status);
                }
                Ok(Wait::Signal(signal)) => self.resume(signal)?,
                Ok(_) => self.resume(0)?,
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn resume(&self, signal: i32) -> Result<(), TraceError> {
        self.registers.set(None);
        ptrace::resume(self.tid, signal).map_err(|e| self.failed("resume", e))
    }

    pub(crate) fn resume_to_call(&self, signal: i32) -> Result<(), TraceError> {
        self.registers.set(None);
        ptrace::resume_to_call(self.tid, signal).map_err(|e| self.failed("resume", e))
    }

    pub(crate) fn interrupt(&self) -> Result<(), TraceError> {
        ptrace::interrupt(self.tid).map_err(|e| self.failed("interrupt", e))
    }

    /// Its next stop, where it has come to one already.
    pub(crate) fn peek(&self) -> Result<Option<Wait>, TraceError> {
        match ptrace::wait(self.tid, false).map_err(|e| self.failed("wait", e))? {
            Some(Wait::Ended(status)) => Err(TraceError::Ended { tid: self.tid, status }),
            wait => Ok(wait),
        }
    }

    pub(crate) fn wait(&self) -> Result<Wait, TraceError> {
        match ptrace::wait(self.tid, true).map_err(|e| self.failed("wait", e))? {
            Some(Wait::Ended(status)) => Err(TraceError::Ended { tid: self.tid, status }),
            Some(wait) => Ok(wait),
            None => Err(self.failed("wait", Errno::EAGAIN)),
        }
    }

    /// Lets it run to the next stop before any of its own code is executed.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn run_on_to_stop(self) -> Result<Seized, TraceError> {
        ptrace::interrupt(self.tid).map_err(|e| self.failed("interrupt", e))?;
        self.run_on()
    }

    /// Lets it run, still traced.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn run_on(mut self) -> Result<Seized, TraceError> {
        self.resume(0)?;
        self.armed = false;
        Ok(Seized {
            tid: self.tid,
            options: self.options,
            armed: true,
            not_send: PhantomData,
        })
    }

    /// Gives it up: should floe end before it lets it go, it goes on by itself, and does not die.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn outlive_tracer(mut self) -> Result<Outliving, TraceError> {
        ptrace::set_options(self.tid, Options::Observe.bits()).map_err(|e| self.failed("give up", e))?;
        self.armed = false;
        Ok(Outliving {
            tid: self.tid,
            stop_again: self.stop_again.get(),
            not_send: PhantomData,
        })
    }

    /// Lets it go on by itself.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn detach(mut self) -> Result<(), TraceError> {
        self.armed = false;
        self.forget_interruption();
        ptrace::detach(self.tid, 0).map_err(|e| self.failed("detach", e))
    }
}

/// A task that floe made, that stands still and is its own by now. Dropped, it stands until floe ends.
#[derive(Debug)]
#[must_use = "it stands still until it is let go"]
pub struct Outliving {
    tid: Pid,
    stop_again: bool,
    not_send: PhantomData<*const ()>,
}

impl Outliving {
    /// Lets it go on. Those that run already may have ended it.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn let_go(self) -> Result<(), TraceError> {
        if self.stop_again
            && let Err(error) = nix::sys::signal::kill(self.tid.nix(), nix::sys::signal::Signal::SIGSTOP)
        {
            tracing::debug!(tid = self.tid.raw(), %error, "a task that was to be stopped is gone");
        }
        match ptrace::detach(self.tid, 0) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(source) => Err(TraceError::Request {
                action: "detach",
                tid: self.tid,
                source,
            }),
        }
    }
}

impl Stopped {
    /// A task of an observed tree goes on as if it had never stood still, whatever made floe stop it and let it go.
    fn forget_interruption(&self) {
        if self.options == Options::Observe
            && let Err(error) = self.undo_interruption()
        {
            tracing::debug!(tid = self.tid.raw(), %error, "a task that is to be released");
        }
        if self.stop_again.take()
            && let Err(error) = nix::sys::signal::kill(self.tid.nix(), nix::sys::signal::Signal::SIGSTOP)
        {
            tracing::debug!(tid = self.tid.raw(), %error, "a task that was to be stopped is gone");
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        self.forget_interruption();
        if self.options == Options::Own {
            end(self.tid);
        } else if let Err(error) = ptrace::detach(self.tid, 0) {
            tracing::debug!(tid = self.tid.raw(), %error, "a task that was to be released is gone");
        }
    }
}
