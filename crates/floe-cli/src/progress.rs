//! Progress on a terminal: a bar for pages. In a pipe nothing is shown. No thread of its own: floe forks.

use floe_checkpoint::stage::Observer;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// Nobody wants to see a bar for less.
const PATIENCE: Duration = Duration::from_millis(250);

/// A bar that appears when the pages take a while.
pub struct Bar {
    bar: ProgressBar,
    began: Instant,
    stage: Cell<&'static str>,
}

impl Bar {
    /// Hidden unless standard error is a terminal.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(20));
        let style = ProgressStyle::with_template("{msg:10} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            bar,
            began: Instant::now(),
            stage: Cell::new(""),
        }
    }
}

impl Observer for Bar {
    fn stage(&self, name: &'static str) {
        tracing::info!(stage = name, "begin");
        self.stage.set(name);
        if !self.bar.is_finished() && self.bar.position() > 0 {
            self.bar.set_message(name);
        }
    }

    fn pages(&self, done: u64, total: u64) {
        if self.began.elapsed() < PATIENCE {
            return;
        }
        self.bar.set_length(total.max(done));
        self.bar.set_message(self.stage.get());
        self.bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
