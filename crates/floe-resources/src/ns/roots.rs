//! Where paths of an image count from: each from the root directory of one of the tree's mount namespaces.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The root directories of mount namespaces, and these themselves, by their numbers in the image.
#[derive(Debug)]
pub struct Roots(Vec<(OwnedFd, OwnedFd)>);

impl Roots {
    /// Of all of an image; there is one at least.
    #[must_use]
    pub fn new(all: Vec<(OwnedFd, OwnedFd)>) -> Self {
        Self(all)
    }

    /// The root directory of the one with this number; where that could not be made, of the tree's own.
    #[must_use]
    pub fn of(&self, number: u32) -> BorrowedFd<'_> {
        let found = self.0.get(number as usize).unwrap_or(&self.0[0]);
        found.0.as_fd()
    }

    /// The root directory of the tree's own.
    #[must_use]
    pub fn own(&self) -> BorrowedFd<'_> {
        self.of(0)
    }

    /// The one with this number, as [`of`](Self::of).
    #[must_use]
    pub fn namespace(&self, number: u32) -> BorrowedFd<'_> {
        let found = self.0.get(number as usize).unwrap_or(&self.0[0]);
        found.1.as_fd()
    }
}
