//! What threads are asked about themselves, and one about its process, by one batch of calls each.

use super::{
    dump::{DumpError, HeldProcess},
    landlock::{self, Decoys},
    memory::{FirstAnswers, PolicyQuestions, with_policies},
    settings::{ProcessSettings, ThreadSettings},
    switches::Switches,
};
use crate::{
    refusal::Refusals,
    tree::{FoundProcess, FoundThread},
};
use floe_image::record::{AlternateStack, IntervalTimer, ProcessSwitches, SignalAction, ThreadSwitches};
use floe_sys::procfs::Status;
use floe_tracee::{Batch, CallHost, CallId, Running, Stopped};
use std::collections::VecDeque;

const SIGNALS: u64 = 64;
const ACTION_BYTES: usize = 32;
/// Linux 6.3; older kernels can't tell.
const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;
const PR_GET_THP_DISABLE: u64 = 42;

/// The threads of a process, one after another; while the caller looks at one's answers the next answers already.
pub(super) struct Interview<'a> {
    hosts: Vec<&'a CallHost<'a>>,
    held: &'a HeldProcess<'a>,
    next: usize,
    asked: VecDeque<Asked<'a>>,
}

impl<'a> Interview<'a> {
    pub(super) fn new(first: &'a CallHost<'a>, second: Option<&'a CallHost<'a>>, held: &'a HeldProcess<'a>) -> Self {
        Self {
            hosts: std::iter::once(first).chain(second).collect(),
            held,
            next: 0,
            asked: VecDeque::new(),
        }
    }

    /// The next thread's answers, with a finding for what they tell that can't be carried; `None` behind the last.
    pub(super) fn next(
        &mut self,
        decoys: &mut Decoys,
        refusals: &mut Refusals,
    ) -> Result<Option<Answered<'a>>, DumpError> {
        while self.asked.len() < self.hosts.len() && self.next < self.held.threads.len() {
            let host = self.hosts[self.next % self.hosts.len()];
            self.asked.push_back(Asked::ask(host, self.held, self.next, decoys)?);
            self.next += 1;
        }
        let Some(asked) = self.asked.pop_front() else {
            return Ok(None);
        };
        asked.answer(self.held.found, refusals).map(Some)
    }
}

/// A thread on its way through the calls.
struct Asked<'a> {
    thread: &'a Stopped,
    ids: &'a FoundThread,
    status: Status,
    running: Running<'a>,
    own: ThreadQuestions,
    process: Option<ProcessQuestions>,
    domain: Option<CallId>,
    policies: Option<PolicyQuestions>,
}

/// A thread that has answered.
pub(super) struct Answered<'a> {
    pub(super) thread: &'a Stopped,
    pub(super) ids: &'a FoundThread,
    pub(super) status: Status,
    pub(super) answers: ThreadAnswers,
    /// The first thread's.
    pub(super) process: Option<(ProcessAnswers, FirstAnswers)>,
}

impl<'a> Asked<'a> {
    fn ask(
        host: &'a CallHost<'a>,
        held: &'a HeldProcess<'a>,
        index: usize,
        decoys: &mut Decoys,
    ) -> Result<Self, DumpError> {
        let (thread, ids) = (held.threads[index], &held.found.threads[index]);
        let mut batch = host.batch();
        let own = ThreadQuestions::ask(&mut batch);
        let process = (index == 0).then(|| ProcessQuestions::ask(&mut batch));
        let status = Status::read(&format!("/proc/{}/task/{}", held.found.pid, thread.tid()))?;
        let domain = decoys.ask(&mut batch, &status, held.found)?;
        // The last, as they take all the room that there is.
        let policies = (index == 0).then(|| PolicyQuestions::ask(&mut batch, &with_policies(held), 0));
        let running = host.start(thread, ids.own_tid(), &status, batch)?;
        Ok(Self {
            thread,
            ids,
            status,
            running,
            own,
            process,
            domain,
            policies,
        })
    }

    fn answer(self, found: &FoundProcess, refusals: &mut Refusals) -> Result<Answered<'a>, DumpError> {
        let batch = self.running.finish()?;
        self.own.switches.refuse(&batch, found, refusals);
        landlock::refuse(&batch, self.domain, (found, self.ids.ns_tid), refusals);
        let mut process = None;
        if let Some((questions, policies)) = self.process.zip(self.policies) {
            questions.switches.refuse(&batch, found, refusals);
            let memory = FirstAnswers {
                locked: self.status.locked,
                policies: policies.answers(&batch, found.task())?,
            };
            process = Some((questions.answers(&batch), memory));
        }
        Ok(Answered {
            thread: self.thread,
            ids: self.ids,
            status: self.status,
            answers: self.own.answers(&batch),
            process,
        })
    }
}

/// Calls that only a thread itself can issue about itself.
struct ThreadQuestions {
    stack: u64,
    tid_address: u64,
    death_signal: u64,
    securebits: CallId,
    slack: CallId,
    switches: Switches,
    settings: ThreadSettings,
}

pub(super) struct ThreadAnswers {
    pub(super) alternate_stack: AlternateStack,
    pub(super) tid_address: u64,
    pub(super) parent_death_signal: i32,
    pub(super) securebits: u32,
    pub(super) timer_slack: u64,
    pub(super) settings: ThreadSwitches,
}

impl ThreadQuestions {
    fn ask(batch: &mut Batch) -> Self {
        let prctl = libc::SYS_prctl;
        let stack = batch.room(24);
        batch.call("read the alternate stack", libc::SYS_sigaltstack, &[0, stack]);
        let tid_address = batch.room(8);
        batch.call(
            "read the tid address",
            prctl,
            &[libc::PR_GET_TID_ADDRESS as u64, tid_address],
        );
        let death_signal = batch.room(4);
        batch.call(
            "read the parent death signal",
            prctl,
            &[libc::PR_GET_PDEATHSIG as u64, death_signal],
        );
        let securebits = batch.call("read the securebits", prctl, &[libc::PR_GET_SECUREBITS as u64]);
        let slack = batch.call("read the timer slack", prctl, &[libc::PR_GET_TIMERSLACK as u64]);
        Self {
            stack,
            tid_address,
            death_signal,
            securebits,
            slack,
            switches: Switches::of_thread(batch),
            settings: ThreadSettings::ask(batch),
        }
    }

    fn answers(&self, batch: &Batch) -> ThreadAnswers {
        ThreadAnswers {
            alternate_stack: AlternateStack {
                base: word(batch, self.stack),
                flags: word(batch, self.stack + 8) as i32,
                size: word(batch, self.stack + 16),
            },
            tid_address: word(batch, self.tid_address),
            parent_death_signal: i32::from_ne_bytes(
                batch.bytes(self.death_signal, 4).try_into().expect("asked for 4 bytes"),
            ),
            securebits: batch.result(self.securebits) as u32,
            timer_slack: batch.result(self.slack) as u64,
            settings: self.settings.answers(batch),
        }
    }
}

fn word(batch: &Batch, address: u64) -> u64 {
    u64::from_ne_bytes(batch.bytes(address, 8).try_into().expect("asked for 8 bytes"))
}

/// Calls that any thread can issue about its process.
struct ProcessQuestions {
    actions: u64,
    timers: u64,
    subreaper: u64,
    dumpable: CallId,
    thp_disable: CallId,
    membarrier: CallId,
    brk: CallId,
    switches: Switches,
    settings: ProcessSettings,
}

pub(super) struct ProcessAnswers {
    pub(super) actions: Vec<SignalAction>,
    pub(super) timers: [IntervalTimer; 3],
    pub(super) dumpable: u32,
    pub(super) subreaper: bool,
    pub(super) thp_disable: bool,
    pub(super) membarrier: u32,
    pub(super) brk: u64,
    pub(super) settings: ProcessSwitches,
}

impl ProcessQuestions {
    fn ask(batch: &mut Batch) -> Self {
        let actions = batch.room(ACTION_BYTES * SIGNALS as usize);
        for signal in 1..=SIGNALS {
            let place = actions + (signal - 1) * ACTION_BYTES as u64;
            batch.call("read a signal action", libc::SYS_rt_sigaction, &[signal, 0, place, 8]);
        }
        let timers = batch.room(3 * 32);
        for which in 0..3 {
            batch.call(
                "read an interval timer",
                libc::SYS_getitimer,
                &[which, timers + which * 32],
            );
        }
        let subreaper = batch.room(4);
        let prctl = libc::SYS_prctl;
        batch.call(
            "read the subreaper flag",
            prctl,
            &[libc::PR_GET_CHILD_SUBREAPER as u64, subreaper],
        );
        let dumpable = batch.call("read the dumpable flag", prctl, &[libc::PR_GET_DUMPABLE as u64]);
        let thp_disable = batch.call("read the huge page flag", prctl, &[PR_GET_THP_DISABLE]);
        let arguments = [MEMBARRIER_CMD_GET_REGISTRATIONS, 0, 0];
        let membarrier = batch.attempt("read membarrier registrations", libc::SYS_membarrier, &arguments);
        let brk = batch.call("read the end of the heap", libc::SYS_brk, &[0]);
        Self {
            actions,
            timers,
            subreaper,
            dumpable,
            thp_disable,
            membarrier,
            brk,
            switches: Switches::of_process(batch),
            settings: ProcessSettings::ask(batch),
        }
    }

    fn answers(&self, batch: &Batch) -> ProcessAnswers {
        let action = |signal: u64| {
            let at = self.actions + signal * ACTION_BYTES as u64;
            SignalAction {
                handler: word(batch, at),
                flags: word(batch, at + 8),
                restorer: word(batch, at + 16),
                mask: word(batch, at + 24),
            }
        };
        let timer = |which: u64| {
            let at = self.timers + which * 32;
            let micros = |at| word(batch, at) * 1_000_000 + word(batch, at + 8);
            IntervalTimer {
                interval: micros(at),
                value: micros(at + 16),
            }
        };
        ProcessAnswers {
            actions: (0..SIGNALS).map(action).collect(),
            timers: [timer(0), timer(1), timer(2)],
            dumpable: batch.result(self.dumpable) as u32,
            subreaper: batch.bytes(self.subreaper, 4) != [0; 4],
            thp_disable: batch.result(self.thp_disable) != 0,
            membarrier: batch.result(self.membarrier).max(0) as u32,
            brk: batch.result(self.brk) as u64,
            settings: self.settings.answers(batch),
        }
    }
}
