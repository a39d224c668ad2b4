//! Progress on a terminal: a bar for pages. In a pipe nothing is shown. No thread of its own: floe forks.

use floe_checkpoint::stage::Observer;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar that appears with the first pages.
pub struct Bar(ProgressBar);

impl Bar {
    /// Hidden unless standard error is a terminal.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(20));
        let style = ProgressStyle::with_template("{msg:10} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }
}

impl Observer for Bar {
    fn stage(&self, name: &'static str) {
        tracing::info!(stage = name, "begin");
        self.0.set_message(name);
    }

    fn pages(&self, done: u64, total: u64) {
        self.0.set_length(total.max(done));
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
