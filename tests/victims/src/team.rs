//! Threads that each make a state of their own and check it when the victim is checked.

use crate::Findings;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

/// A set of such threads. Between checks they wait for a futex (a condition variable).
#[derive(Debug, Default)]
pub struct Team {
    board: Arc<Board>,
    names: Vec<String>,
}

#[derive(Debug, Default)]
struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    round: u64,
    sabotage: bool,
    ready: usize,
    done: usize,
    findings: Vec<String>,
}

impl Team {
    /// Starts a thread; `build` makes its state and returns the check of it. Returns when the state is made.
    pub fn spawn<C: FnMut(&mut Findings)>(&mut self, name: &str, build: impl FnOnce() -> C + Send + 'static) {
        let (board, label) = (Arc::clone(&self.board), name.to_owned());
        self.names.push(name.to_owned());
        std::thread::Builder::new()
            .spawn(move || board.member(&label, build))
            .expect("a thread");
        let mut state = self.board.state.lock().expect("no member panics with the lock");
        while state.ready < self.names.len() {
            state = self.board.changed.wait(state).expect("no member panics with the lock");
        }
    }

    /// Lets every thread check itself.
    pub fn check(&self, findings: &mut Findings) {
        let mut state = self.board.state.lock().expect("no member panics with the lock");
        (state.round, state.done, state.sabotage) = (state.round + 1, 0, findings.sabotage());
        self.board.changed.notify_all();
        let all = self.names.len();
        let (mut state, timeout) = self
            .board
            .changed
            .wait_timeout_while(state, Duration::from_secs(60), |state| state.done < all)
            .expect("no member panics with the lock");
        for text in state.findings.drain(..) {
            findings.add(text);
        }
        if timeout.timed_out() {
            findings.add(format!("only {} of {all} threads answered", state.done));
        }
    }
}

impl Board {
    fn member<C: FnMut(&mut Findings)>(&self, label: &str, build: impl FnOnce() -> C) {
        let built = catch_unwind(AssertUnwindSafe(build));
        let mut state = self.state.lock().expect("no member panics with the lock");
        state.ready += 1;
        self.changed.notify_all();
        let Ok(mut check) = built else {
            state.findings.push(format!("{label}: could not make its state"));
            return;
        };
        for round in 1.. {
            while state.round < round {
                state = self.changed.wait(state).expect("no member panics with the lock");
            }
            let mut findings = Findings::new(state.sabotage);
            drop(state);
            if catch_unwind(AssertUnwindSafe(|| check(&mut findings))).is_err() {
                findings.add("panic in the check");
            }
            state = self.state.lock().expect("no member panics with the lock");
            let verdict = findings.verdict();
            if verdict != "ok" {
                state
                    .findings
                    .push(format!("{label}: {}", verdict.trim_start_matches("FAIL: ")));
            }
            state.done += 1;
            self.changed.notify_all();
        }
    }
}
