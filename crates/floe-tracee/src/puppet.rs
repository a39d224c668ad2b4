//! A task that floe made and that does nothing but what it is told, until it is let go as somebody else.
//!
//! Unlike a [`CallHost`](crate::CallHost) it needs no way back: it dies with floe. Its stub and tables stand in shared
//! anonymous memory that all puppets of a tree inherit, so forking copies nothing of it.

use crate::{Arena, Batch, CallError, CallId, Options, Registers, SeizeError, Seized, Stopped, TraceError, arch};
use floe_sys::{
    Pid,
    elf::{CODE_OFFSET, one_page_program},
    memory::MemoryFile,
    procfs::Mapping,
};
use std::{io, os::fd::OwnedFd};

/// The signal that ends a batch unless another is asked for; puppets have all others blocked.
const QUIET: i32 = libc::SIGURG;

/// A puppet that failed.
#[derive(Debug, thiserror::Error)]
pub enum PuppetError {
    /// Ptrace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Ptrace, at the start.
    #[error(transparent)]
    Seize(#[from] SeizeError),
    /// A call.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The arena could not be set up.
    #[error("set up the stub in the seed {pid}")]
    Arena {
        /// The seed.
        pid: Pid,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// /proc.
    #[error(transparent)]
    Proc(#[from] floe_sys::procfs::ProcError),
    /// The kernel gave a task another id than the one asked for.
    #[error("a new task got the id {got}, not {wanted}: something else makes tasks in the new PID namespace")]
    WrongId {
        /// Asked for.
        wanted: i32,
        /// Given.
        got: i64,
    },
}

/// A task under control.
#[derive(Debug)]
pub struct Puppet {
    task: Stopped,
    ids: PuppetIds,
    arena: Arena,
}

/// Ids of a puppet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PuppetIds {
    /// Process, in the PID namespace of the tree.
    pub process: i32,
    /// Thread, there.
    pub thread: i32,
    /// Process, in the puppet's own PID namespace, which may be one below.
    pub own_process: i32,
    /// Thread, there.
    pub own_thread: i32,
}

impl PuppetIds {
    /// Of the first process of all.
    const SEED: Self = Self {
        process: 1,
        thread: 1,
        own_process: 1,
        own_thread: 1,
    };
}

/// Bytes of the arena that puppets share.
pub const ARENA_BYTES: u64 = 1 << 20;
const CODE_PAGE: u64 = 4096;
/// Where the seed's one page lies.
const SEED_BASE: u64 = 0x1_0000;

impl Puppet {
    /// Takes over the seed at its exec stop, puts the arena at `base` (which must be free in it and in all address
    /// spaces to come) and unmaps the seed's own program and stack; what remains are the arena and the kernel's own
    /// mappings.
    ///
    /// # Errors
    /// [`PuppetError`].
    pub fn from_seed(seed: Stopped, choose_base: impl FnOnce(&[Mapping]) -> u64) -> Result<Self, PuppetError> {
        let pid = seed.tid();
        // Behind the exec event the result of execve still overwrites the registers; one stop later it doesn't.
        let seized = seed.run_on_to_stop()?;
        let task = seized.stop()?;
        task.set_signal_mask(!(1 << (QUIET - 1)))?;
        let before = Mapping::read_all_without_flags(pid)?;
        let base = choose_base(&before);
        let own_code = Arena {
            code: SEED_BASE + CODE_OFFSET,
            memory: 0,
            bytes: 0,
        };
        let mut registers = task.registers()?;
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let map = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let arguments = [base, ARENA_BYTES, prot as u64, map as u64, u64::MAX, 0];
        registers.prepare_call(own_code.single_entry(), libc::SYS_mmap as u64, arguments);
        task.set_registers(&registers)?;
        task.run_through_call()?;
        let result = task.registers()?.result();
        let failed = |source| PuppetError::Arena { pid, source };
        if result as u64 != base {
            return Err(failed(io::Error::from_raw_os_error(
                i32::try_from(-result).unwrap_or(libc::EEXIST),
            )));
        }
        MemoryFile::open(pid)
            .and_then(|memory| memory.write(base, Arena::code_bytes()))
            .map_err(failed)?;
        let arena = Arena {
            code: base,
            memory: base + CODE_PAGE,
            bytes: ARENA_BYTES - CODE_PAGE,
        };
        let puppet = Self {
            task,
            ids: PuppetIds::SEED,
            arena,
        };
        puppet.unmap_all_but_kernel(&before)?;
        Ok(puppet)
    }

    fn unmap_all_but_kernel(&self, before: &[Mapping]) -> Result<(), PuppetError> {
        let mut batch = self.batch();
        for mapping in before.iter().filter(|m| !m.path.starts_with(b"[v")) {
            batch.call("unmap the seed", libc::SYS_munmap, &[mapping.start, mapping.len()]);
        }
        self.run(&mut batch)
    }

    /// The stopped task.
    #[must_use]
    pub fn task(&self) -> &Stopped {
        &self.task
    }

    /// Lets job control stop its process, as `signal` would have.
    ///
    /// # Errors
    /// [`PuppetError`].
    pub fn stop_by_job_control(&mut self, signal: i32) -> Result<(), PuppetError> {
        // A signal can only be injected where another one was about to be delivered, as it is behind a batch; and a
        // blocked one would be queued.
        let mut batch = self.batch();
        batch.call("come to a signal", libc::SYS_getpid, &[]);
        self.run(&mut batch)?;
        self.task.set_signal_mask(!(1 << (signal - 1)))?;
        self.task.stop_by_job_control(signal)?;
        self.task.set_signal_mask(!(1 << (QUIET - 1)))?;
        Ok(())
    }

    /// Its id in floe's namespace.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.task.tid()
    }

    /// Its thread id in the tree's PID namespace.
    #[must_use]
    pub fn thread(&self) -> i32 {
        self.ids.thread
    }

    /// Its process id in the tree's PID namespace.
    #[must_use]
    pub fn process(&self) -> i32 {
        self.ids.process
    }

    /// All its ids.
    #[must_use]
    pub fn ids(&self) -> PuppetIds {
        self.ids
    }

    /// How a batch ends: the task sends itself a signal.
    fn end_of_batch(&self, signal: i32) -> (i32, i32, i32) {
        (self.ids.own_process, self.ids.own_thread, signal)
    }

    /// Where the stub and its tables stand.
    #[must_use]
    pub fn arena_range(&self) -> std::ops::Range<u64> {
        self.arena.code..self.arena.code + ARENA_BYTES
    }

    /// An empty batch for [`Puppet::run`].
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch::new(self.arena)
    }

    /// Runs a batch.
    ///
    /// # Errors
    /// [`PuppetError::Call`].
    pub fn run(&self, batch: &mut Batch) -> Result<(), PuppetError> {
        Ok(batch.run(&self.task, self.end_of_batch(QUIET))?)
    }

    /// Runs a batch that ends with another signal than usual, because SIGURG is among those it makes pending.
    ///
    /// # Errors
    /// [`PuppetError`].
    pub fn run_ending_with(&self, batch: &mut Batch, signal: i32) -> Result<(), PuppetError> {
        self.task.set_signal_mask(!(1 << (signal - 1)))?;
        Ok(batch.run(&self.task, self.end_of_batch(signal))?)
    }

    /// Runs a batch in which the call `clone` makes a task, which must be called `wanted` in this puppet's PID namespace and
    /// has `ids`; returns that task.
    ///
    /// # Errors
    /// [`PuppetError`].
    pub fn spawn(&self, mut batch: Batch, clone: CallId, wanted: i32, ids: PuppetIds) -> Result<Self, PuppetError> {
        let born = batch.run_with_birth(&self.task, self.end_of_batch(QUIET))?;
        let got = batch.result(clone);
        let (Some(born), true) = (born, got == i64::from(wanted)) else {
            return Err(PuppetError::WrongId { wanted, got });
        };
        let task = Seized::born(born).stop()?;
        Ok(Self {
            task,
            ids,
            arena: self.arena,
        })
    }

    /// Issues one call from the `syscall` instruction at `address`, outside of the arena, e.g. to unmap it.
    ///
    /// # Errors
    /// [`PuppetError`]; a call that fails is [`CallError::Call`].
    pub fn call_at(&self, address: u64, what: &str, number: i64, arguments: [u64; 6]) -> Result<(), PuppetError> {
        let mut registers = self.task.registers()?;
        registers.prepare_call(address, number as u64, arguments);
        self.task.set_registers(&registers)?;
        self.task.run_through_call()?;
        let result = self.task.registers()?.result();
        if (-4095..0).contains(&result) {
            let source = nix::errno::Errno::from_raw(-result as i32);
            return Err(CallError::Call {
                what: what.to_owned(),
                tid: self.tid(),
                source,
            }
            .into());
        }
        Ok(())
    }

    /// Lets the task begin a call and interrupts it at once, so that the kernel remembers in the task what is left of it
    /// (-516). `data` is put into the arena; `arguments` are told its address. Returns the call's result.
    ///
    /// # Errors
    /// [`PuppetError`].
    pub fn begin_call(
        &self,
        number: i64,
        data: &[u8],
        arguments: &dyn Fn(u64) -> [u64; 6],
    ) -> Result<i64, PuppetError> {
        let mut batch = self.batch();
        let place = batch.data(data);
        batch.transfer(&self.task)?;
        let mut registers = self.task.registers()?;
        registers.prepare_call(self.arena.single_entry(), number as u64, arguments(place));
        self.task.set_registers(&registers)?;
        Ok(self.task.begin_call()?)
    }

    /// Lets the task issue `exit_group` or be killed: runs the batch, whose last call does not return, and reaps it as
    /// its tracer. Its parent still sees a zombie.
    ///
    /// # Errors
    /// [`PuppetError`].
    pub fn end(self, status: i32) -> Result<(), PuppetError> {
        let mut registers = self.task.registers()?;
        let signal = libc::WTERMSIG(status);
        if libc::WIFEXITED(status) {
            let code = libc::WEXITSTATUS(status) as u64;
            registers.prepare_call(
                self.arena.single_entry(),
                libc::SYS_exit_group as u64,
                [code, 0, 0, 0, 0, 0],
            );
            self.task.set_registers(&registers)?;
            self.task.wait_for_end(0)?;
        } else {
            self.task.set_signal_mask(!(1u64 << (signal - 1)))?;
            self.task.wait_for_end(signal)?;
        }
        Ok(())
    }

    /// Sets the registers that the task will go on with; the extended ones stay where they are not told.
    ///
    /// # Errors
    /// [`PuppetError`].
    pub fn become_somebody(&self, general: &Registers, extended: &[u8], mask: u64) -> Result<(), PuppetError> {
        if !extended.is_empty() {
            self.task.set_extended(extended)?;
        }
        self.task.set_signal_mask(mask)?;
        self.task.set_registers(general)?;
        Ok(())
    }

    /// Executes the program behind descriptor `number` with these arguments and no environment; the task stands still
    /// before its first instruction.
    ///
    /// # Errors
    /// [`PuppetError`].
    pub fn execute(self, number: i32, arguments: &[String]) -> Result<Stopped, PuppetError> {
        let mut batch = self.batch();
        let empty = batch.data(b"\0");
        let mut pointers: Vec<u64> = arguments
            .iter()
            .map(|word| batch.data(&[word.as_bytes(), &[0]].concat()))
            .collect();
        pointers.push(0);
        let vector = batch.data(&pointers.iter().flat_map(|p| p.to_ne_bytes()).collect::<Vec<u8>>());
        let none = batch.data(&[0; 8]);
        // The call does not come back to the stub.
        batch.transfer(&self.task)?;
        let call = [number as u64, empty, vector, none, libc::AT_EMPTY_PATH as u64, 0];
        let mut registers = self.task.registers()?;
        registers.prepare_call(self.arena.single_entry(), libc::SYS_execveat as u64, call);
        self.task.set_registers(&registers)?;
        Ok(self.task.run_on()?.stop_at_exec()?)
    }

    /// Hands over the stopped task.
    #[must_use]
    pub fn into_task(self) -> Stopped {
        self.task
    }

    /// Waits for the seed: begins to trace the process that is about to execute it.
    ///
    /// # Errors
    /// [`PuppetError::Seize`].
    pub fn expect_seed(pid: Pid) -> Result<Seized, PuppetError> {
        Ok(Seized::running(pid, Options::Own)?)
    }

    /// The seed: a static program of one page that holds nothing but the stub. It never runs by itself.
    ///
    /// # Errors
    /// Those of memfd_create(2) and write(2).
    pub fn seed_program() -> io::Result<OwnedFd> {
        one_page_program("floe-seed", SEED_BASE, arch::stub_code())
    }
}

impl Batch {
    fn run_with_birth(&mut self, task: &Stopped, end: (i32, i32, i32)) -> Result<Option<Pid>, CallError> {
        let mut born = None;
        self.run_observed(task, end, |tid| born = Some(tid))?;
        Ok(born)
    }
}
