//! `--lazy`: memory that comes while the tree runs ([`mm::lazy`](floe_resources::mm::lazy)).
//!
//! Which pages may is chosen before there is a tree. What holds them is left empty when it is built, and looked after when
//! all is built and no puppet forks any more. Before the tree runs, a process takes over that brings them.

use super::{RestoreError, tree::World};
use floe_image::{
    Image,
    record::{AddressSpaceRecord, PageRun},
};
use floe_resources::mm::{
    Filler,
    lazy::{self, BeginError, Brought, ServeError, Surroundings, Watched},
};
use floe_sandbox::{Launch, PageKeeper};
use floe_sys::pager::Pager;
use std::{
    collections::HashMap,
    error::Error,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

const PAGE: u64 = 4096;

/// Pages that come later, by process.
pub type Later = HashMap<i32, Vec<PageRun>>;

/// What came of it that memory was to come while the tree runs.
#[derive(Debug, Default)]
pub struct Postponed {
    /// Bytes that come later.
    pub bytes: u64,
    /// Why memory came at once all the same, where some did.
    pub not: Option<String>,
}

/// Pages that may come later, where this host lets them; and why not.
pub fn choose(image: &Image) -> (Later, Option<String>) {
    match Pager::of_own() {
        Ok(_) => (lazy::may_come_later(image), None),
        Err(error) => (
            Later::new(),
            Some(format!("it takes a userfaultfd of root's: {}", error.desc())),
        ),
    }
}

/// Memory that is looked after, and by what.
#[derive(Default)]
pub struct LookedAfter<'a> {
    spaces: Vec<Watched<'a>>,
    not: Option<String>,
}

impl<'a> LookedAfter<'a> {
    /// Has the memory looked after of all processes of which something comes later. A process that can't be helped gets all of
    /// it at once.
    pub fn begin(image: &'a Image, world: &World<'_>, later: &Later) -> Result<Self, RestoreError> {
        let mut all = Self::default();
        for space in image.address_spaces() {
            let Some(runs) = later.get(&space.pid.0) else { continue };
            all.begin_one(space, runs, world)?;
        }
        Ok(all)
    }

    fn begin_one(
        &mut self,
        space: &'a AddressSpaceRecord,
        runs: &[PageRun],
        world: &World<'_>,
    ) -> Result<(), RestoreError> {
        let puppet = world.puppet(space.pid.0)?;
        let filler: &Filler<'_> = world.filler();
        match lazy::begin(puppet, space, runs, filler) {
            Ok((userfault, left)) => self.spaces.push((space, userfault, left)),
            Err(BeginError::Fill(error)) => return Err(error.into()),
            Err(error) => {
                filler.process(puppet.tid(), runs, Vec::new())?;
                self.not = Some(format!("process {}: {}", space.pid, chain(&error)));
            }
        }
        Ok(())
    }

    /// Leaves it to a process that brings what is to come, however this one ends.
    pub fn hand_over(self, image: &Image, launch: &Launch) -> Result<Postponed, RestoreError> {
        let Self { spaces, not } = self;
        let pages = spaces.iter().flat_map(|(_, _, runs)| runs).map(|run| run.pages);
        let bytes = pages.sum::<u64>() * PAGE;
        if spaces.is_empty() {
            return Ok(Postponed { bytes, not });
        }
        // The monitor is handed copies; the descriptors themselves go to the server with all else that this process has.
        let held = spaces
            .iter()
            .map(|(_, userfault, _)| userfault.as_fd().try_clone_to_owned());
        let held = held
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| RestoreError::System {
                action: "copy a userfaultfd".to_owned(),
                source,
            })?;
        let mut keep: Vec<i32> = (spaces.iter())
            .map(|(_, userfault, _)| userfault.as_fd().as_raw_fd())
            .collect();
        keep.extend(image.files().map(|file| file.as_raw_fd()));
        let held: Vec<BorrowedFd<'_>> = held.iter().map(AsFd::as_fd).collect();
        launch.bring_pages(&held, &keep, |keeper| serve(image, spaces, keeper))?;
        Ok(Postponed { bytes, not })
    }
}

/// The server's life; whether it came to a good end.
fn serve(image: &Image, spaces: Vec<Watched<'_>>, keeper: &mut PageKeeper) -> bool {
    match lazy::serve(image, spaces, &mut Around(keeper)) {
        Ok(Brought::All) => {
            keeper.complete();
            true
        }
        Ok(Brought::Stopped) => true,
        Err(_) => false,
    }
}

struct Around<'k>(&'k mut PageKeeper);

impl Surroundings for Around<'_> {
    fn files(&self) -> Vec<BorrowedFd<'_>> {
        self.0.surroundings()
    }

    fn are_over(&mut self) -> bool {
        self.0.is_over()
    }

    fn end(&self, error: &ServeError) {
        self.0.end_sandbox(&chain(error));
    }
}

/// An error with its causes.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
