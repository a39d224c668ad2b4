//! Where paths of an image count from: each from the root directory of one of the tree's mount namespaces.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// The root directories of mount namespaces, by their numbers in the image.
#[derive(Debug)]
pub struct Roots {
    own: OwnedFd,
    further: BTreeMap<u32, OwnedFd>,
}

impl Roots {
    /// That of the tree's own, number 0, and those of others.
    #[must_use]
    pub fn new(own: OwnedFd, further: BTreeMap<u32, OwnedFd>) -> Self {
        Self { own, further }
    }

    /// The one with this number; where that could not be made, the tree's own.
    #[must_use]
    pub fn of(&self, number: u32) -> BorrowedFd<'_> {
        self.further.get(&number).unwrap_or(&self.own).as_fd()
    }

    /// That of the tree's own.
    #[must_use]
    pub fn own(&self) -> BorrowedFd<'_> {
        self.own.as_fd()
    }
}
