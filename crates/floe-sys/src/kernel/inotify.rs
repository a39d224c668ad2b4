//! What inotify instances hold: fs/notify/inotify/inotify.h.

use super::FileMemory;
use std::{io, os::fd::BorrowedFd};

/// What is asked for here.
pub(super) const STRUCTURES: [&str; 5] = [
    "fsnotify_group",
    "fsnotify_event",
    "inotify_group_private_data",
    "inotify_event_info",
    "idr",
];

/// No instance has more events: fs.inotify.max_queued_events is a number of four bytes, but memory ends before.
const MOST_EVENTS: usize = 1 << 24;

/// NAME_MAX, linux/limits.h.
const LONGEST_NAME: u32 = 255;

/// What inotify_event.mask tells: IN_ALL_EVENTS, IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED, IN_ISDIR.
const TOLD: u32 = 0x4000_efff;

/// What an inotify instance holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InotifyQueue {
    /// The number at which a number for the next watch is looked for.
    pub next: i32,
    /// Events that nobody has read, first one first.
    pub events: Vec<InotifyEvent>,
}

/// An event: `struct inotify_event`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InotifyEvent {
    /// The watch's number; -1 for IN_Q_OVERFLOW.
    pub watch: i32,
    /// IN_*.
    pub mask: u32,
    /// Empty where it is about what is watched itself.
    pub name: Vec<u8>,
}

impl FileMemory {
    /// What an inotify instance of the caller's holds. All who cause or read events stand still.
    ///
    /// # Errors
    /// Those of reading.
    pub fn inotify(&self, instance: BorrowedFd<'_>) -> io::Result<InotifyQueue> {
        let memory = &self.0;
        let group = memory.member("file", memory.file(instance)?, "private_data")?;
        let numbers = group + memory.types.offset("fsnotify_group", "inotify_data")?;
        let numbers = numbers + memory.types.offset("inotify_group_private_data", "idr")?;
        let next = memory.number("idr", numbers, "idr_next")? as i32;
        let head = group + memory.types.offset("fsnotify_group", "notification_list")?;
        let node = memory.types.offset("inotify_event_info", "fse")? + memory.types.offset("fsnotify_event", "list")?;
        let mut events = Vec::new();
        let mut place = memory.word(head)?;
        for _ in 0..MOST_EVENTS {
            if place == head {
                return Ok(InotifyQueue { next, events });
            }
            events.push(self.event(place.wrapping_sub(node))?);
            place = memory.word(place)?;
        }
        Err(io::Error::other("the kernel's list of events has no end"))
    }

    fn event(&self, event: u64) -> io::Result<InotifyEvent> {
        let memory = &self.0;
        let number = |member| memory.number("inotify_event_info", event, member);
        let length = number("name_len")?;
        if length > LONGEST_NAME {
            return Err(io::Error::other("an event has a name that is too long"));
        }
        let name = event + memory.types.offset("inotify_event_info", "name")?;
        Ok(InotifyEvent {
            watch: number("wd")? as i32,
            mask: number("mask")? & TOLD,
            name: memory.bytes(name, length as usize)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::kernel::FileMemory;
    use crate::{
        event::{add_inotify_watch, inotify, remove_inotify_watch, set_next_inotify_watch},
        mount,
    };
    use std::os::fd::{AsFd, AsRawFd};

    #[test]
    fn events_are_seen_and_left() {
        let folder = mount::file_system(c"tmpfs").expect("as root");
        let path = format!("/proc/self/fd/{}/a name of some length", folder.as_raw_fd());
        let instance = inotify(libc::IN_NONBLOCK).expect("an instance");
        let memory = FileMemory::open().expect("as root");
        let add = || add_inotify_watch(instance.as_fd(), folder.as_fd(), libc::IN_CREATE | libc::IN_MODIFY);
        set_next_inotify_watch(instance.as_fd(), 41).expect("a number");
        assert_eq!(add(), Ok(41));
        assert_eq!(memory.inotify(instance.as_fd()).expect("read").next, 42);
        std::fs::write(path, "x").expect("write");
        remove_inotify_watch(instance.as_fd(), 41).expect("it is there");
        let wanted = [
            (41, libc::IN_CREATE, "a name of some length"),
            (41, libc::IN_MODIFY, "a name of some length"),
            (41, libc::IN_IGNORED, ""),
        ];
        for _ in 0..2 {
            let found = memory.inotify(instance.as_fd()).expect("read").events;
            let found: Vec<_> = found
                .iter()
                .map(|event| (event.watch, event.mask, std::str::from_utf8(&event.name).expect("text")))
                .collect();
            assert_eq!(found, wanted);
        }
    }
}
