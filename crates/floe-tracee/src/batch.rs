//! A batch: a table of system calls with the bytes they point to, run in a task in one go.
//!
//! ```text
//! arena memory:  | call 0: number, 6 arguments, result | call 1 | ... |      | data ... |
//! ```

use crate::{Arena, Stopped, TraceError};
use floe_sys::memory::{self, RemoteRange};
use nix::errno::Errno;

const ENTRY_WORDS: usize = 8;
const ENTRY_BYTES: u64 = 64;

/// A call's place in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallId(usize);

impl CallId {
    /// The second call of a batch.
    pub(crate) const SECOND: Self = Self(1);
}

/// A batch that failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The task did not do what it was told.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The table could not be put into the task or fetched from it.
    #[error("{action} the table of calls of task {tid}")]
    Transfer {
        /// Write or read.
        action: &'static str,
        /// Whose.
        tid: floe_sys::Pid,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A call in the table failed.
    #[error("{what} in task {tid}")]
    Call {
        /// What it was for.
        what: String,
        /// Where it ran.
        tid: floe_sys::Pid,
        /// Its result.
        #[source]
        source: Errno,
    },
    /// A call in the table returned something else than it must.
    #[error("{what} in task {tid} is {is}, should be {should}")]
    Differs {
        /// What it asks for.
        what: String,
        /// Where it ran.
        tid: floe_sys::Pid,
        /// Its result.
        is: i64,
        /// What it must be.
        should: i64,
    },
}

/// What the stub's last tgkill(2) names: process and thread in the task's own PID namespace, and a signal that is neither
/// pending for the task nor caught by it; or 0, and the task is stopped at every call instead, which takes longer.
pub(crate) type End = (i32, i32, i32);

#[derive(Debug)]
struct Entry {
    what: &'static str,
    words: [u64; ENTRY_WORDS],
    wanted: Wanted,
}

/// What a call must return.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    Anything,
    Success,
    Exactly(i64),
}

/// Calls to be run in a task, with their data. Addresses that [`Batch::data`] and [`Batch::room`] return are valid in
/// the task while the batch runs.
#[derive(Debug)]
pub struct Batch {
    arena: Arena,
    entries: Vec<Entry>,
    /// Data that goes in and comes out; it lies at the top end of the arena's memory, growing up from `data_base`.
    data: Vec<u8>,
}

impl Batch {
    /// An empty batch for a task whose stub stands in `arena`.
    #[must_use]
    pub fn new(arena: Arena) -> Self {
        Self {
            arena,
            entries: Vec::new(),
            data: Vec::new(),
        }
    }

    fn data_base(&self) -> u64 {
        self.arena.memory + self.arena.bytes / 4
    }

    /// Whether another `calls` calls and `bytes` bytes fit.
    #[must_use]
    pub fn fits(&self, calls: usize, bytes: usize) -> bool {
        let quarter = self.arena.bytes / 4;
        (self.entries.len() + calls) as u64 * ENTRY_BYTES <= quarter
            && (self.data.len() + bytes + 16) as u64 <= self.arena.bytes - quarter
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds bytes for calls to point to, aligned to 16; returns their address in the task.
    pub fn data(&mut self, bytes: &[u8]) -> u64 {
        self.data.resize(self.data.len().next_multiple_of(16), 0);
        let address = self.data_base() + self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        address
    }

    /// Adds room for a call to write into; returns its address in the task.
    pub fn room(&mut self, bytes: usize) -> u64 {
        self.data(&vec![0; bytes])
    }

    /// Adds a call that must succeed. Fewer than six arguments are filled up with zeros.
    pub fn call(&mut self, what: &'static str, number: i64, arguments: &[u64]) -> CallId {
        self.push(what, number, arguments, Wanted::Success)
    }

    /// Adds a call that may fail; its result is looked at by the caller.
    pub fn attempt(&mut self, what: &'static str, number: i64, arguments: &[u64]) -> CallId {
        self.push(what, number, arguments, Wanted::Anything)
    }

    /// Adds a question to which there is one right answer.
    pub fn expect(&mut self, what: &'static str, number: i64, arguments: &[u64], answer: i64) -> CallId {
        self.push(what, number, arguments, Wanted::Exactly(answer))
    }

    fn push(&mut self, what: &'static str, number: i64, arguments: &[u64], wanted: Wanted) -> CallId {
        let mut words = [0; ENTRY_WORDS];
        words[0] = number as u64;
        words[1..=arguments.len()].copy_from_slice(arguments);
        self.entries.push(Entry { what, words, wanted });
        CallId(self.entries.len() - 1)
    }

    /// Where an argument of a call stands in the task while the batch runs.
    pub(crate) fn place_of_argument(&self, call: CallId, argument: u64) -> u64 {
        self.arena.memory + call.0 as u64 * ENTRY_BYTES + (1 + argument) * 8
    }

    /// Runs the calls in `task`. Its registers are the stub's then, and all its signals but `end.2` must be blocked.
    ///
    /// `end` is what the stub's last tgkill(2) names: process and thread in the task's own PID namespace, and a signal
    /// that is neither pending for the task nor caught by it; or 0, and the task is stopped at every call instead, which
    /// takes longer.
    ///
    /// # Errors
    /// [`CallError`]; `Call` and `Differs` name the first call that did not what it had to. All of them were issued.
    pub fn run(&mut self, task: &Stopped, end: (i32, i32, i32)) -> Result<(), CallError> {
        self.run_observed(task, end, |_| {})
    }

    pub(crate) fn run_observed(
        &mut self,
        task: &Stopped,
        end: End,
        observe: impl FnMut(floe_sys::Pid),
    ) -> Result<(), CallError> {
        self.launch(task, end)?;
        self.complete_observed(task, end, observe)
    }

    /// [`Batch::run`] as far as nothing need be waited for.
    pub(crate) fn launch(&self, task: &Stopped, end: End) -> Result<(), CallError> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let mut bytes = self.table();
        let places = self.places();
        bytes.extend_from_slice(&self.data);
        memory::write_ranges(task.tid(), &places, &bytes)
            .and_then(|done| whole(done, &bytes))
            .map_err(|source| CallError::Transfer {
                action: "write",
                tid: task.tid(),
                source,
            })?;
        let mut registers = task.registers()?;
        registers.prepare_batch(
            self.arena.batch_entry(),
            self.arena.memory,
            self.entries.len() as u64,
            end,
        );
        task.set_registers(&registers)?;
        if end.2 != 0 {
            task.resume(0)?;
        }
        Ok(())
    }

    /// The rest of it.
    pub(crate) fn complete(&mut self, task: &Stopped, end: End) -> Result<(), CallError> {
        self.complete_observed(task, end, |_| {})
    }

    fn complete_observed(
        &mut self,
        task: &Stopped,
        end: End,
        mut observe: impl FnMut(floe_sys::Pid),
    ) -> Result<(), CallError> {
        if self.entries.is_empty() {
            return Ok(());
        }
        if end.2 == 0 {
            task.run_through_calls(self.entries.len() + 1, &mut observe)?;
        } else {
            task.comes_to_signal(end.2, &mut observe)?;
            // The same signal from somebody else does not end it. A task that ignores it loses nothing.
            while task.registers()?.calls_left() > 0 {
                task.resume(0)?;
                task.comes_to_signal(end.2, &mut observe)?;
            }
        }
        self.fetch(task)
    }

    /// Runs the calls with a pause behind the first one, in which the task stands still and `look` is told what it returned.
    /// Should floe die in it, the task makes the other calls by itself.
    pub(crate) fn run_with_pause(
        &mut self,
        task: &Stopped,
        (process, thread, _): End,
        look: impl FnOnce(i64),
    ) -> Result<(), CallError> {
        self.launch(task, (process, thread, 0))?;
        task.run_through_calls(1, |_| {})?;
        look(task.registers()?.result());
        // The others, and the stub's last.
        task.run_through_calls(self.entries.len(), |_| {})?;
        self.fetch(task)
    }

    /// Fetches the results.
    fn fetch(&mut self, task: &Stopped) -> Result<(), CallError> {
        let table = self.entries.len() * ENTRY_BYTES as usize;
        let mut bytes = vec![0; table + self.data.len()];
        let places = self.places();
        memory::read_ranges(task.tid(), &places, &mut bytes)
            .and_then(|done| whole(done, &bytes))
            .map_err(|source| CallError::Transfer {
                action: "read",
                tid: task.tid(),
                source,
            })?;
        self.data.copy_from_slice(&bytes[table..]);
        for (entry, bytes) in self
            .entries
            .iter_mut()
            .zip(bytes[..table].chunks_exact(ENTRY_BYTES as usize))
        {
            entry.words[7] = u64::from_ne_bytes(bytes[56..].try_into().expect("8 bytes"));
        }
        self.first_failure(task.tid())
    }

    fn table(&self) -> Vec<u8> {
        let words = self.entries.iter().flat_map(|entry| entry.words);
        words.flat_map(u64::to_ne_bytes).collect()
    }

    /// Where the table and the data stand in the task.
    fn places(&self) -> [RemoteRange; 2] {
        let table = RemoteRange {
            start: self.arena.memory,
            bytes: self.entries.len() * ENTRY_BYTES as usize,
        };
        let data = RemoteRange {
            start: self.data_base(),
            bytes: self.data.len(),
        };
        [table, data]
    }

    /// Puts the data alone into the task.
    pub(crate) fn transfer(&self, task: &Stopped) -> Result<(), CallError> {
        let tid = task.tid();
        let place = RemoteRange {
            start: self.data_base(),
            bytes: self.data.len(),
        };
        match memory::write_ranges(tid, &[place], &self.data) {
            Ok(done) if done == self.data.len() => Ok(()),
            Ok(_) => Err(Errno::EFAULT),
            Err(error) => Err(error),
        }
        .map_err(|source| CallError::Transfer {
            action: "write data beside",
            tid,
            source,
        })
    }

    fn first_failure(&self, tid: floe_sys::Pid) -> Result<(), CallError> {
        for entry in &self.entries {
            let what = || format!("{} ({:x?})", entry.what, &entry.words[1..7]);
            let is = entry.words[7] as i64;
            match (entry.wanted, errno(entry.words[7])) {
                (Wanted::Success | Wanted::Exactly(0..), Some(source)) => {
                    let what = what();
                    return Err(CallError::Call { what, tid, source });
                }
                (Wanted::Exactly(should), _) if is != should => {
                    let what = what();
                    return Err(CallError::Differs { what, tid, is, should });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What a call returned: a value, or minus an errno.
    #[must_use]
    pub fn result(&self, call: CallId) -> i64 {
        self.entries[call.0].words[7] as i64
    }

    /// What the task left at an address that [`Batch::data`] or [`Batch::room`] returned.
    #[must_use]
    pub fn bytes(&self, address: u64, bytes: usize) -> &[u8] {
        let at = (address - self.data_base()) as usize;
        &self.data[at..at + bytes]
    }
}

fn whole(done: usize, bytes: &[u8]) -> Result<(), Errno> {
    if done == bytes.len() {
        Ok(())
    } else {
        Err(Errno::EFAULT)
    }
}

fn errno(result: u64) -> Option<Errno> {
    let result = result as i64;
    (-4095..0).contains(&result).then(|| Errno::from_raw(-result as i32))
}
