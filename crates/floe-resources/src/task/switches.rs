//! Switches of a task that are not carried: each is asked for by a call in the task and must be as it is in a new one.
//! A kernel or processor that does not know a switch answers with an error, and then nobody can have set it. Those that
//! are carried stand in `settings.rs`.

use crate::{refusal::Refusals, tree::FoundProcess};
use floe_tracee::{Batch, CallId};

const PR_GET_TAGGED_ADDRESS_CTRL: u64 = 56;
const PR_SCHED_CORE: u64 = 62;
const KEYCTL_GET_KEYRING_ID: u64 = 0;

const NOT_CARRIED: &str = "this switch of a task is not carried yet";

/// How a switch that was asked for is told from one in a new task.
#[derive(Debug, Clone, Copy)]
enum Usual {
    /// The result is at most this, or an error.
    AtMost(i64),
    /// There is no such thing: the result is an error.
    Nothing,
    /// The call wrote 8 bytes of zeros at this address, or failed.
    Zeros(u64),
}

#[derive(Debug)]
struct Switch {
    call: CallId,
    usual: Usual,
    object: &'static str,
    reason: &'static str,
    advice: &'static str,
}

/// What was asked for in one batch.
#[derive(Debug)]
pub(super) struct Switches(Vec<Switch>);

impl Switches {
    /// Asks for those of a thread.
    pub(super) fn of_thread(batch: &mut Batch) -> Self {
        let mut asked = Self(Vec::new());
        let cookie = batch.room(8);
        let core = (
            "core scheduling cookie (PR_SCHED_CORE)",
            NOT_CARRIED,
            "start it without",
        );
        let arguments = [PR_SCHED_CORE, 0, 0, 0, cookie];
        asked.ask(batch, libc::SYS_prctl, &arguments, Usual::Zeros(cookie), core);
        for (keyring, object) in [(-1_i64, "thread keyring"), (-2, "process keyring")] {
            let arguments = [KEYCTL_GET_KEYRING_ID, keyring as u64, 0];
            let texts = (object, NOT_CARRIED, "keep keys in the user's keyring");
            asked.ask(batch, libc::SYS_keyctl, &arguments, Usual::Nothing, texts);
        }
        asked
    }

    /// Asks for those of a process.
    pub(super) fn of_process(batch: &mut Batch) -> Self {
        let mut asked = Self(Vec::new());
        let prctl = libc::SYS_prctl;
        let tagged = (
            "tagged addresses (PR_SET_TAGGED_ADDR_CTRL)",
            NOT_CARRIED,
            "switch it off",
        );
        asked.ask(batch, prctl, &[PR_GET_TAGGED_ADDRESS_CTRL], Usual::AtMost(0), tagged);
        let dumpable = (
            "dumpable mode 2",
            "the kernel sets it by itself alone, at an exec that gains privileges; nobody can ask for it",
            "prctl(PR_SET_DUMPABLE, 1), or fs.suid_dumpable=0",
        );
        let arguments = [libc::PR_GET_DUMPABLE as u64];
        asked.ask(batch, prctl, &arguments, Usual::AtMost(1), dumpable);
        asked
    }

    fn ask(
        &mut self,
        batch: &mut Batch,
        number: i64,
        arguments: &[u64],
        usual: Usual,
        (object, reason, advice): (&'static str, &'static str, &'static str),
    ) {
        let call = batch.attempt(object, number, arguments);
        self.0.push(Switch {
            call,
            usual,
            object,
            reason,
            advice,
        });
    }

    /// Adds a finding for each that is not as in a new task.
    pub(super) fn refuse(&self, batch: &Batch, process: &FoundProcess, refusals: &mut Refusals) {
        for switch in &self.0 {
            let result = batch.result(switch.call);
            let usual = match switch.usual {
                Usual::Nothing => result < 0,
                Usual::AtMost(most) => result <= most,
                Usual::Zeros(address) => result < 0 || batch.bytes(address, 8) == [0; 8],
            };
            if !usual {
                refusals.add(Some(&process.subject()), switch.object, switch.reason, switch.advice);
            }
        }
    }
}
