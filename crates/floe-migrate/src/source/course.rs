//! What all parts of a source have in common while a migration is under way.

use super::{MigrateError, Request, pace::Pace, streams, tuner::Tuner};
use floe_checkpoint::stage::Control;
use std::{
    cell::Cell,
    num::NonZeroU64,
    sync::{Mutex, MutexGuard},
};

/// A migration under way: what was asked for, and what is learned of the way to the other host.
pub struct Course<'a> {
    pub request: &'a Request<'a>,
    pub control: &'a Control<'a>,
    pub pace: Mutex<Pace>,
    pub tuner: Mutex<Tuner>,
    /// Images that went over several connections.
    images: Cell<u32>,
}

impl<'a> Course<'a> {
    pub fn new(request: &'a Request<'a>, control: &'a Control<'a>) -> Result<Self, MigrateError> {
        let per_second = request.bandwidth.map(NonZeroU64::get);
        let tuner = Tuner::new(request.level, per_second).map_err(MigrateError::system("map memory"))?;
        Ok(Self {
            request,
            control,
            pace: Mutex::new(Pace::new(request.bandwidth)),
            tuner: Mutex::new(tuner),
            images: Cell::new(0),
        })
    }

    pub fn pace(&self) -> MutexGuard<'_, Pace> {
        streams::lock(&self.pace)
    }

    pub fn tuner(&self) -> MutexGuard<'_, Tuner> {
        streams::lock(&self.tuner)
    }

    /// The number of the next image that goes over several connections.
    pub fn next_image(&self) -> u32 {
        self.images.replace(self.images.get() + 1)
    }
}
