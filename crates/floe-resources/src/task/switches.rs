//! Switches of a task that are not carried: each is asked for by a call in the task and must be as it is in a new one.
//! A kernel or processor that does not know a switch answers with an error, and then nobody can have set it.

use crate::{refusal::Refusals, tree::FoundProcess};
use floe_tracee::{Batch, CallId};

const PR_GET_SPECULATION_CTRL: u64 = 52;
const PR_GET_TAGGED_ADDRESS_CTRL: u64 = 56;
const PR_SCHED_CORE: u64 = 62;
const PR_GET_MDWE: u64 = 66;
const PR_GET_MEMORY_MERGE: u64 = 68;
const PR_GET_THP_DISABLE: u64 = 42;
const PR_MCE_KILL_DEFAULT: i64 = 2;
const PR_SPEC_PRCTL: i64 = 1;
const PR_SPEC_ENABLE: i64 = 2;
/// PR_SPEC_DISABLE, PR_SPEC_FORCE_DISABLE, PR_SPEC_DISABLE_NOEXEC.
const SPECULATION_OFF: i64 = 4 | 8 | 16;
const KEYCTL_GET_KEYRING_ID: u64 = 0;

/// How a switch that was asked for is told from one in a new task.
#[derive(Debug, Clone, Copy)]
enum Usual {
    /// The result is this one, or an error.
    Result(i64),
    /// The result has none of these bits, or says that the task did not choose (PR_SPEC_PRCTL), or is an error.
    NotChosen(i64),
    /// The result is at most this.
    AtMost(i64),
    /// There is no such thing: the result is an error.
    Nothing,
    /// The call wrote this number, at this address, or failed.
    Number(u64, u64),
}

#[derive(Debug)]
struct Switch {
    call: CallId,
    usual: Usual,
    object: &'static str,
    advice: &'static str,
}

/// What was asked for in one batch.
#[derive(Debug)]
pub(super) struct Switches(Vec<Switch>);

impl Switches {
    /// Asks for those of a thread.
    pub(super) fn of_thread(batch: &mut Batch) -> Self {
        let mut asked = Self(Vec::new());
        let off = "switch it off";
        let tsc = batch.room(4);
        let prctl = libc::SYS_prctl;
        let usual = Usual::Number(tsc, libc::PR_TSC_ENABLE as u64);
        asked.ask(
            batch,
            prctl,
            &[libc::PR_GET_TSC as u64, tsc],
            usual,
            ("time stamp counter forbidden (PR_SET_TSC)", off),
        );
        let usual = Usual::Result(PR_MCE_KILL_DEFAULT);
        let policy = ("machine check policy (PR_MCE_KILL)", off);
        asked.ask(batch, prctl, &[libc::PR_MCE_KILL_GET as u64], usual, policy);
        for (kind, object) in [
            "speculative store bypass off (PR_SET_SPECULATION_CTRL)",
            "indirect branch speculation off (PR_SET_SPECULATION_CTRL)",
            "cache flush at context switches (PR_SET_SPECULATION_CTRL)",
        ]
        .into_iter()
        .enumerate()
        {
            // The flush is off in a new task, the others are on.
            let usual = if kind == 2 {
                Usual::NotChosen(PR_SPEC_ENABLE)
            } else {
                Usual::NotChosen(SPECULATION_OFF)
            };
            let advice = "start it without";
            asked.ask(
                batch,
                prctl,
                &[PR_GET_SPECULATION_CTRL, kind as u64],
                usual,
                (object, advice),
            );
        }
        let cookie = batch.room(8);
        let usual = Usual::Number(cookie, 0);
        let core = ("core scheduling cookie (PR_SCHED_CORE)", "start it without");
        asked.ask(batch, prctl, &[PR_SCHED_CORE, 0, 0, 0, cookie], usual, core);
        for (keyring, object) in [(-1_i64, "thread keyring"), (-2, "process keyring")] {
            let arguments = [KEYCTL_GET_KEYRING_ID, keyring as u64, 0];
            asked.ask(
                batch,
                libc::SYS_keyctl,
                &arguments,
                Usual::Nothing,
                (object, "keep keys in the user's keyring"),
            );
        }
        asked
    }

    /// Asks for those of a process.
    pub(super) fn of_process(batch: &mut Batch) -> Self {
        let mut asked = Self(Vec::new());
        let prctl = libc::SYS_prctl;
        let off = "switch it off";
        let mdwe = ("memory-deny-write-execute (PR_SET_MDWE)", "start it without");
        asked.ask(batch, prctl, &[PR_GET_MDWE], Usual::Result(0), mdwe);
        let merge = ("memory merging (PR_SET_MEMORY_MERGE)", off);
        asked.ask(batch, prctl, &[PR_GET_MEMORY_MERGE], Usual::Result(0), merge);
        let pages = (
            "huge pages disabled with flags (PR_SET_THP_DISABLE)",
            "disable them without flags",
        );
        asked.ask(batch, prctl, &[PR_GET_THP_DISABLE], Usual::AtMost(1), pages);
        let tagged = ("tagged addresses (PR_SET_TAGGED_ADDR_CTRL)", off);
        asked.ask(batch, prctl, &[PR_GET_TAGGED_ADDRESS_CTRL], Usual::Result(0), tagged);
        let dumpable = ("dumpable mode 2", "prctl(PR_SET_DUMPABLE, 1), or fs.suid_dumpable=0");
        asked.ask(
            batch,
            prctl,
            &[libc::PR_GET_DUMPABLE as u64],
            Usual::AtMost(1),
            dumpable,
        );
        asked
    }

    fn ask(
        &mut self,
        batch: &mut Batch,
        number: i64,
        arguments: &[u64],
        usual: Usual,
        (object, advice): (&'static str, &'static str),
    ) {
        let call = batch.attempt(object, number, arguments);
        self.0.push(Switch {
            call,
            usual,
            object,
            advice,
        });
    }

    /// Adds a finding for each that is not as in a new task.
    pub(super) fn refuse(&self, batch: &Batch, process: &FoundProcess, refusals: &mut Refusals) {
        for switch in &self.0 {
            let result = batch.result(switch.call);
            let usual = match switch.usual {
                Usual::Nothing => result < 0,
                _ if result < 0 => true,
                Usual::Result(usual) => result == usual,
                Usual::NotChosen(bits) => result & PR_SPEC_PRCTL == 0 || result & bits == 0,
                Usual::AtMost(most) => result <= most,
                Usual::Number(address, usual) => {
                    let bytes = batch.bytes(address, if usual == 0 { 8 } else { 4 });
                    let number = bytes
                        .iter()
                        .rev()
                        .fold(0, |number, byte| number << 8 | u64::from(*byte));
                    number == usual
                }
            };
            if !usual {
                refusals.add(
                    Some(&process.subject()),
                    switch.object,
                    "this switch of a task is not carried yet",
                    switch.advice,
                );
            }
        }
    }
}
