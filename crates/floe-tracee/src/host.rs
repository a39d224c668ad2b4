//! Remote calls in a task that must survive whatever becomes of floe.
//!
//! The stub is written into the unused tail of the task's vDSO, with the words that bring the thread back beside it. If
//! floe dies at any moment, the kernel detaches the thread, and the stub's way out restores it: nothing else has to be
//! alive. The tail has room for two stubs, so that one thread can run while the other is looked at.

use crate::{
    Arena, Batch, CallError, RestartCode, Seized, Stopped, TraceError,
    arch::{self, Registers},
    batch::End,
    restart_code,
};
use floe_sys::{
    Pid,
    memory::{self, MemoryFile, RemoteRange},
    procfs::{Mapping, Status},
};
use nix::errno::Errno;
use std::{io, rc::Rc};

const SCRATCH_BYTES: u64 = 64 << 10;
const ALL_SIGNALS: u64 = u64::MAX;

/// A task in which no call can be run.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// It has no vDSO.
    #[error("process {0} has no vDSO to place the stub in (boot option vdso=0?)")]
    NoVdso(Pid),
    /// The tail is too short.
    #[error(
        "the vDSO of process {pid} leaves {tail} bytes free; the stub needs {}",
        Arena::code_room()
    )]
    NoRoom {
        /// Whose.
        pid: Pid,
        /// Bytes free.
        tail: usize,
    },
    /// The vDSO or the stub could not be read or written.
    #[error("{action} the vDSO of process {pid}")]
    Memory {
        /// Read or write.
        action: &'static str,
        /// Whose.
        pid: Pid,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The selector of syscall user dispatch could not be read or written.
    #[error("lift the syscall user dispatch of task {tid}")]
    Selector {
        /// Whose.
        tid: Pid,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// /proc.
    #[error(transparent)]
    Proc(#[from] floe_sys::procfs::ProcError),
    /// Ptrace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The calls.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// A process whose vDSO holds the stub. Dropping it takes the stub out again.
#[derive(Debug)]
pub struct CallHost<'a> {
    leader: &'a Stopped,
    pid: Pid,
    ns_pid: i32,
    arena: Arena,
    /// Bytes of the tail, from the stub on.
    room: usize,
    memory: Rc<MemoryFile>,
    /// The scratch mapping, once it is there.
    scratch: (u64, u64),
    cleared: bool,
}

impl<'a> CallHost<'a> {
    /// Writes the stub into the vDSO of the process that `leader` leads, and maps scratch memory there.
    ///
    /// `ns_pid` is the process's id in its own PID namespace; `mappings` are its mappings.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn new(leader: &'a Stopped, ns_pid: i32, mappings: &[Mapping]) -> Result<Self, HostError> {
        let pid = leader.tid();
        let vdso = mappings
            .iter()
            .find(|m| m.path == b"[vdso]")
            .ok_or(HostError::NoVdso(pid))?;
        let wrap = |action| move |source| HostError::Memory { action, pid, source };
        let memory = MemoryFile::open(pid).map_err(wrap("open"))?;
        let mut image = vec![0; vdso.len() as usize];
        memory.read(vdso.start, &mut image).map_err(wrap("read"))?;
        let tail = arch::vdso_tail(&image).ok_or(HostError::NoVdso(pid))?;
        if image.len() - tail < Arena::code_room() {
            return Err(HostError::NoRoom {
                pid,
                tail: image.len() - tail,
            });
        }
        let (code, room) = (vdso.start + tail as u64, image.len() - tail);
        Self::place(leader, ns_pid, Rc::new(memory), (code, room))
    }

    /// A second stub in the same process, for another of its threads; `None` where the tail has no room for it.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn second(&self) -> Result<Option<Self>, HostError> {
        let (code, room) = (
            self.arena.code + Arena::code_room() as u64,
            self.room - Arena::code_room(),
        );
        if room < Arena::code_room() {
            return Ok(None);
        }
        Self::place(self.leader, self.ns_pid, Rc::clone(&self.memory), (code, room)).map(Some)
    }

    fn place(
        leader: &'a Stopped,
        ns_pid: i32,
        memory: Rc<MemoryFile>,
        (code, room): (u64, usize),
    ) -> Result<Self, HostError> {
        let pid = leader.tid();
        memory
            .write(code, Arena::code_bytes())
            .map_err(|source| HostError::Memory {
                action: "write the stub into",
                pid,
                source,
            })?;
        let mut host = Self {
            leader,
            pid,
            ns_pid,
            arena: Arena {
                code,
                memory: 0,
                bytes: 0,
            },
            room,
            memory,
            scratch: (0, 0),
            cleared: false,
        };
        host.map_scratch()?;
        Ok(host)
    }

    fn map_scratch(&mut self) -> Result<(), HostError> {
        const MAP: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        const PROT: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let address = self.single(
            "map scratch memory",
            libc::SYS_mmap,
            [0, SCRATCH_BYTES, PROT, MAP, u64::MAX, 0],
        )?;
        self.scratch = (address as u64, SCRATCH_BYTES);
        self.arena.memory = self.scratch.0;
        self.arena.bytes = SCRATCH_BYTES;
        Ok(())
    }

    /// An empty batch for [`CallHost::run`].
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch::new(self.arena)
    }

    /// The scratch mapping's range, which is floe's and not the task's.
    #[must_use]
    pub fn scratch(&self) -> std::ops::Range<u64> {
        self.scratch.0..self.scratch.0 + self.scratch.1
    }

    /// Runs a batch in a thread of the process, whose registers and signal mask are its own again afterwards. `status`
    /// was read while the thread was stopped.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn run(&self, thread: &Stopped, ns_tid: i32, status: &Status, batch: &mut Batch) -> Result<(), HostError> {
        let whole = std::mem::replace(batch, self.batch());
        *batch = self.start(thread, ns_tid, status, whole)?.finish()?;
        Ok(())
    }

    /// Like [`CallHost::run`], but does not wait for the end; no other batch may be started by this stub until then.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn start<'r>(
        &'r self,
        thread: &'r Stopped,
        ns_tid: i32,
        status: &Status,
        batch: Batch,
    ) -> Result<Running<'r>, HostError> {
        let (guest, end) = self.enter(thread, ns_tid, status)?;
        match batch.launch(thread, end) {
            Ok(()) => Ok(Running {
                guest: Some(guest),
                batch: Some(batch),
                end,
            }),
            Err(error) => {
                guest.leave()?;
                Err(error.into())
            }
        }
    }

    /// Like [`CallHost::run`], with a pause behind the first call, in which the thread stands still and `look` is told what it
    /// returned. Should floe die in it, the thread makes the other calls by itself.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn run_with_pause(
        &self,
        thread: &Stopped,
        ns_tid: i32,
        status: &Status,
        batch: &mut Batch,
        look: impl FnOnce(i64),
    ) -> Result<(), HostError> {
        let (guest, end) = self.enter(thread, ns_tid, status)?;
        let ran = batch.run_with_pause(thread, end, look);
        guest.leave()?;
        Ok(ran?)
    }

    /// Like [`CallHost::run`], for calls one of which makes a task, which the kernel attaches to floe before it runs. Where
    /// the batch fails, that has ended.
    pub(crate) fn run_with_birth(
        &self,
        thread: &Stopped,
        ns_tid: i32,
        status: &Status,
        batch: &mut Batch,
    ) -> Result<Option<Seized>, HostError> {
        let mut born = None;
        thread.attach_children(true)?;
        let (guest, end) = self.enter(thread, ns_tid, status)?;
        let ran = batch.run_observed(thread, end, |tid| born = Some(Seized::born(tid)));
        guest.leave()?;
        thread.attach_children(false)?;
        ran?;
        Ok(born)
    }

    /// Has the thread's registers lead into the stub, and chooses how a batch ends.
    fn enter<'r>(&'r self, thread: &'r Stopped, ns_tid: i32, status: &Status) -> Result<(Guest<'r>, End), HostError> {
        let signal = quiet_signal(status);
        let open = signal.map_or(0, bit);
        let guest = Guest::enter(self, thread, ALL_SIGNALS & !open)?;
        Ok((guest, (self.ns_pid, ns_tid, signal.unwrap_or(0))))
    }

    /// Has a copy of the thread's memory say of calls what the thread's own does: it was made when they were let through.
    pub(crate) fn copy_selector(thread: &Stopped, copy: &Stopped) -> Result<(), HostError> {
        match Selector::of(thread)? {
            Some(selector) => selector.set(copy, selector.value),
            None => Ok(()),
        }
    }

    pub(crate) fn arena(&self) -> Arena {
        self.arena
    }

    fn single(&self, what: &str, number: i64, arguments: [u64; 6]) -> Result<i64, HostError> {
        let guest = Guest::enter(self, self.leader, ALL_SIGNALS)?;
        let result = guest.call(number, arguments);
        guest.leave()?;
        match result? {
            error @ -4095..0 => {
                let source = Errno::from_raw(-error as i32);
                Err(CallError::Call {
                    what: what.to_owned(),
                    tid: self.pid,
                    source,
                }
                .into())
            }
            value => Ok(value),
        }
    }

    /// Removes the scratch memory and the stub.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn remove(mut self) -> Result<(), HostError> {
        self.clear()
    }

    fn clear(&mut self) -> Result<(), HostError> {
        let (address, bytes) = std::mem::take(&mut self.scratch);
        if bytes != 0 {
            self.single("unmap scratch memory", libc::SYS_munmap, [address, bytes, 0, 0, 0, 0])?;
        }
        self.memory
            .write(self.arena.code, &vec![0; Arena::code_bytes().len()])
            .map_err(|source| HostError::Memory {
                action: "clear the stub from",
                pid: self.pid,
                source,
            })?;
        self.cleared = true;
        Ok(())
    }
}

impl Drop for CallHost<'_> {
    fn drop(&mut self) {
        if !self.cleared
            && let Err(error) = self.clear()
        {
            tracing::debug!(pid = self.pid.raw(), %error, "the stub stays in a process");
        }
    }
}

/// A thread that runs a batch. Dropping it waits for the end, so that the thread is its own again.
#[derive(Debug)]
pub struct Running<'a> {
    guest: Option<Guest<'a>>,
    batch: Option<Batch>,
    end: End,
}

impl Running<'_> {
    /// Waits for the end; then the thread's registers and signal mask are its own again, and the batch has its results.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn finish(mut self) -> Result<Batch, HostError> {
        self.wait().map(|batch| batch.expect("it is waited for once"))
    }

    fn wait(&mut self) -> Result<Option<Batch>, HostError> {
        let (Some(guest), Some(mut batch)) = (self.guest.take(), self.batch.take()) else {
            return Ok(None);
        };
        let done = batch.complete(guest.thread, self.end);
        guest.leave()?;
        done?;
        Ok(Some(batch))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.wait() {
            tracing::debug!(%error, "calls that nobody waits for any more");
        }
    }
}

/// A signal that the task would not notice, should floe die before it takes it back: one that it ignores, or that is
/// ignored by default. Not SIGCONT, which has effects when it is sent.
fn quiet_signal(status: &Status) -> Option<i32> {
    let taken = status.caught | status.pending | status.shared_pending;
    let by_default = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];
    let stops = [libc::SIGCONT, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    let ignored = (1..=64).filter(|signal| status.ignored & bit(*signal) != 0 && !stops.contains(signal));
    by_default
        .into_iter()
        .chain(ignored)
        .find(|signal| taken & bit(*signal) == 0)
}

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// A thread between [`Guest::enter`] and [`Guest::leave`]: its registers are the stub's, and the stub knows the way
/// back.
#[derive(Debug)]
struct Guest<'a> {
    host: &'a CallHost<'a>,
    thread: &'a Stopped,
    registers: Registers,
    mask: u64,
    selector: Option<Selector>,
}

/// PR_SYS_DISPATCH_ALLOW, include/uapi/linux/prctl.h.
const CALLS_ALLOWED: u8 = 0;

/// The byte by which a thread, where it has one, says whether its calls are turned into signals, and what it says.
#[derive(Debug, Clone, Copy)]
struct Selector {
    address: u64,
    value: u8,
}

impl Selector {
    fn of(thread: &Stopped) -> Result<Option<Self>, HostError> {
        let Some(dispatch) = thread.dispatch()?.filter(|dispatch| dispatch.selector != 0) else {
            return Ok(None);
        };
        let mut value = [0];
        memory::read(thread.tid(), dispatch.selector, &mut value).map_err(|source| Self::failed(thread, source))?;
        Ok(Some(Self {
            address: dispatch.selector,
            value: value[0],
        }))
    }

    fn set(self, thread: &Stopped, value: u8) -> Result<(), HostError> {
        let place = RemoteRange {
            start: self.address,
            bytes: 1,
        };
        match memory::write_ranges(thread.tid(), &[place], &[value]) {
            Ok(1) => Ok(()),
            Ok(_) => Err(Self::failed(thread, Errno::EFAULT)),
            Err(source) => Err(Self::failed(thread, source)),
        }
    }

    fn failed(thread: &Stopped, source: Errno) -> HostError {
        HostError::Selector {
            tid: thread.tid(),
            source,
        }
    }
}

impl<'a> Guest<'a> {
    fn enter(host: &'a CallHost<'a>, thread: &'a Stopped, block: u64) -> Result<Self, HostError> {
        let registers = thread.registers()?;
        let mask = thread.signal_mask()?;
        let selector = Selector::of(thread)?;
        let way_back = way_back(&registers);
        let state = arch::exit_state(
            &way_back,
            mask,
            host.scratch,
            selector.map_or((0, 0), |s| (s.address, s.value)),
        );
        host.memory
            .write(host.arena.exit_state(), &state)
            .map_err(|source| HostError::Memory {
                action: "write the way back into",
                pid: host.pid,
                source,
            })?;
        // The registers lead into the stub before calls are let through and signals blocked: from here on floe's death
        // restores all three.
        let guest = Self {
            host,
            thread,
            registers,
            mask,
            selector,
        };
        guest.lead_out()?;
        if let Some(selector) = selector {
            selector.set(thread, CALLS_ALLOWED)?;
        }
        thread.set_signal_mask(block)?;
        Ok(guest)
    }

    fn call(&self, number: i64, arguments: [u64; 6]) -> Result<i64, HostError> {
        let mut registers = self.thread.registers()?;
        registers.prepare_call(self.host.arena.single_entry(), number as u64, arguments);
        self.thread.set_registers(&registers)?;
        self.thread.run_through_call()?;
        Ok(self.thread.registers()?.result())
    }

    /// Has the registers lead to the stub's way out.
    fn lead_out(&self) -> Result<(), TraceError> {
        let mut inside = self.registers;
        inside.prepare_call(self.host.arena.exit_entry(), libc::SYS_getpid as u64, [0; 6]);
        self.thread.set_registers(&inside)
    }

    fn leave(self) -> Result<(), HostError> {
        self.thread.set_signal_mask(self.mask)?;
        if let Some(selector) = self.selector {
            self.lead_out()?;
            selector.set(self.thread, selector.value)?;
        }
        self.thread.set_registers(&self.registers)?;
        Ok(())
    }
}

/// The registers that the stub restores if floe dies: a call that was interrupted is issued again, and one whose
/// remainder the kernel keeps in the thread goes on with that (restart_syscall(2)).
fn way_back(registers: &Registers) -> Registers {
    let mut back = *registers;
    match (restart_code(registers), registers.call()) {
        (Some(RestartCode::Again | RestartCode::Interrupted), Some(call)) => back.reissue(call),
        (Some(RestartCode::Block), Some(_)) => back.reissue(libc::SYS_restart_syscall as u64),
        _ => {}
    }
    back
}
