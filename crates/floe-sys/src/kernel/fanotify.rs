//! What `/proc` does not tell of fanotify groups: fs/notify/fanotify/fanotify_user.c.

use super::FileMemory;
use std::{io, os::fd::BorrowedFd};

/// Of the group's flags, for the kernel's own use: FANOTIFY_UNPRIV, linux/fanotify.h.
const UNPRIVILEGED: u32 = 1 << 31;

/// What is told nowhere of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FanotifyGroup {
    /// Whether who made it lacked CAP_SYS_ADMIN, so that it is told less.
    pub unprivileged: bool,
    /// Whether questions were read and have no answer yet.
    pub unanswered: bool,
}

impl FileMemory {
    /// Of a group of the caller's.
    ///
    /// # Errors
    /// Those of reading.
    pub fn fanotify(&self, group: BorrowedFd<'_>) -> io::Result<FanotifyGroup> {
        let memory = &self.0;
        let group = memory.member("file", memory.file(group)?, "private_data")?;
        let flags = memory.number("fsnotify_group", group, "fanotify_data.flags")?;
        let head = group + memory.types.offset("fsnotify_group", "fanotify_data.access_list")?;
        Ok(FanotifyGroup {
            unprivileged: flags & UNPRIVILEGED != 0,
            unanswered: memory.word(head)? != head,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::FanotifyGroup;
    use crate::{fanotify, kernel::FileMemory};
    use std::os::fd::AsFd;

    #[test]
    fn a_new_group_has_nothing_to_answer() {
        let group = fanotify::group(libc::FAN_CLASS_CONTENT, 0).expect("as root");
        let memory = FileMemory::open().expect("as root");
        let wanted = FanotifyGroup {
            unprivileged: false,
            unanswered: false,
        };
        assert_eq!(memory.fanotify(group.as_fd()).expect("read"), wanted);
    }
}
