//! Calls for a puppet that are gathered and run together: each run costs a stop, so the fewer the better.

use crate::{Batch, Puppet, PuppetError};

/// Calls that wait to be run in a puppet. They are run when there is no more room for others, or when asked.
#[derive(Debug)]
pub struct Script<'a> {
    puppet: &'a Puppet,
    batch: Batch,
}

impl<'a> Script<'a> {
    /// An empty one.
    #[must_use]
    pub fn new(puppet: &'a Puppet) -> Self {
        Self {
            puppet,
            batch: puppet.batch(),
        }
    }

    /// Whose calls they are.
    #[must_use]
    pub fn puppet(&self) -> &'a Puppet {
        self.puppet
    }

    /// The batch, with room for so many more calls and bytes of data. Addresses of data are good for calls added before
    /// the next use of the script.
    ///
    /// # Errors
    /// [`PuppetError`] of calls that had to be run to make room.
    pub fn reserve(&mut self, calls: usize, bytes: usize) -> Result<&mut Batch, PuppetError> {
        if !self.batch.fits(calls, bytes) {
            self.run()?;
        }
        Ok(&mut self.batch)
    }

    /// Adds a call that needs no data and must succeed.
    ///
    /// # Errors
    /// As [`Script::reserve`].
    pub fn call(&mut self, what: &'static str, number: i64, arguments: &[u64]) -> Result<(), PuppetError> {
        self.reserve(1, 0)?.call(what, number, arguments);
        Ok(())
    }

    /// Runs what waits, and returns it with its results.
    ///
    /// # Errors
    /// [`PuppetError`] of the first call that had to succeed and did not.
    pub fn run(&mut self) -> Result<Batch, PuppetError> {
        let mut batch = std::mem::replace(&mut self.batch, self.puppet.batch());
        self.puppet.run(&mut batch)?;
        Ok(batch)
    }
}
