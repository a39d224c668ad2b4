//! Whose turn it is to write: pieces go out in the order in which the caller gave them, whichever thread has them.
//!
//! The thread that compressed a chunk writes it, while it is still in that core's cache, and no core waits for another one
//! that only writes.

use super::{
    Summary, WriteError,
    order::{Order, Sink},
};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What an image ends with.
pub(super) type Written = Result<(Sink, Summary), WriteError>;

/// The order, and who may have it.
pub(super) struct Turns {
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    /// The piece that is to be written next.
    next: u64,
    /// `None` while it is used, and once there is nothing more to write.
    order: Option<Order>,
    over: bool,
    written: Option<Written>,
}

impl Turns {
    pub fn new(order: Order) -> Self {
        Self {
            state: Mutex::new(State {
                next: 0,
                order: Some(order),
                over: false,
                written: None,
            }),
            moved: Condvar::new(),
        }
    }

    /// Whether nothing will be written any more.
    pub fn are_over(&self) -> bool {
        self.state().over
    }

    /// Waits until it is the turn of piece `number`, and has it written. False once nothing is written any more.
    pub fn write(&self, number: u64, write: impl FnOnce(&mut Order) -> Result<(), WriteError>) -> bool {
        let Some(mut order) = self.wait_for(number) else {
            return false;
        };
        let result = write(&mut order);
        let mut state = self.state();
        state.next = number + 1;
        match result {
            Ok(()) => state.order = Some(order),
            Err(error) => state.end(Err(error)),
        }
        self.moved.notify_all();
        !state.over
    }

    /// Waits until it is the turn of piece `number`, the last one, and ends the image.
    pub fn finish(&self, number: u64) {
        let Some(order) = self.wait_for(number) else { return };
        let written = order.end();
        self.state().end(written);
        self.moved.notify_all();
    }

    /// Nothing is to be written any more, because of `error` unless there was one before.
    pub fn close(&self, error: WriteError) {
        self.state().end(Err(error));
        self.moved.notify_all();
    }

    /// Waits until piece `number` is written; false if it never will be.
    pub fn wait_past(&self, number: u64) -> bool {
        let state = self.wait_while(|state| !state.over && state.next <= number);
        state.next > number
    }

    /// What became of the image; it is told once.
    pub fn take_written(&self) -> Option<Written> {
        self.state().written.take()
    }

    fn wait_for(&self, number: u64) -> Option<Order> {
        let mut state = self.wait_while(|state| !state.over && (state.next != number || state.order.is_none()));
        if state.over { None } else { state.order.take() }
    }

    fn wait_while(&self, condition: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        self.moved
            .wait_while(self.state(), |state| condition(state))
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// No code that may panic runs while it is locked.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&mut self, written: Written) {
        self.over = true;
        self.written.get_or_insert(written);
    }
}

/// Ends the image where the thread that holds it panics: the others would wait for its turn for ever.
pub(super) struct Alarm<'a>(pub &'a Turns);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.close(WriteError::Thread);
        }
    }
}
