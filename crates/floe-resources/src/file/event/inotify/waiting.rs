//! Events that nobody has read. They can only be made again by something that happens, so those alone are carried of which
//! floe can make the same happen without a change:
//!
//! - of what is watched still, or is in a directory that is: that it was opened, closed, read, written or got other
//!   attributes. It is opened, closed, or its times are set to what they are;
//! - of a watch that was removed, or whose file was deleted: all but moves. It is made again for a directory or a file of
//!   floe's own, and removed or deleted again.
//!
//! Tried for what happened in a directory that is watched still: to cause it in a directory of floe's own whose watch has the
//! number, and to give that to the real one then. Whatever ends the first watch (inotify_rm_watch(2), IN_ONESHOT, deletion)
//! queues IN_IGNORED with that number, behind all else, where no read takes it without the events before it; and it is only
//! lost where the queue has overflown, which is an event too (Linux 6.18).

use super::Watch;
use floe_sys::kernel::InotifyQueue;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// An event.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Event {
    /// The number of the watch that told of it.
    pub(super) watch: i32,
    /// IN_*.
    pub(super) mask: u32,
    /// Of the file in a directory that it is about.
    #[serde(with = "serde_bytes")]
    pub(super) name: Vec<u8>,
}

/// What floe makes happen to a file that is there, whoever it belongs to.
const HARMLESS: [u32; 6] = [
    libc::IN_OPEN,
    libc::IN_CLOSE_NOWRITE,
    libc::IN_CLOSE_WRITE,
    libc::IN_ACCESS,
    libc::IN_MODIFY,
    libc::IN_ATTRIB,
];

const NAMES: [(u32, &str); 9] = [
    (libc::IN_CREATE, "IN_CREATE"),
    (libc::IN_DELETE, "IN_DELETE"),
    (libc::IN_MOVED_FROM, "IN_MOVED_FROM"),
    (libc::IN_MOVED_TO, "IN_MOVED_TO"),
    (libc::IN_MOVE_SELF, "IN_MOVE_SELF"),
    (libc::IN_DELETE_SELF, "IN_DELETE_SELF"),
    (libc::IN_UNMOUNT, "IN_UNMOUNT"),
    (libc::IN_Q_OVERFLOW, "IN_Q_OVERFLOW"),
    (libc::IN_IGNORED, "IN_IGNORED"),
];

impl Event {
    /// What happened.
    pub(super) fn what(&self) -> u32 {
        self.mask & !libc::IN_ISDIR
    }

    /// Whether it is about a directory.
    pub(super) fn is_directory(&self) -> bool {
        self.mask & libc::IN_ISDIR != 0
    }

    fn has_possible_name(&self) -> bool {
        let name = self.name.as_slice();
        name.len() <= 255 && !name.contains(&b'/') && !name.contains(&0) && name != b"." && name != b".."
    }

    /// Whether floe can make it happen where nothing else is.
    fn can_be_staged(&self) -> bool {
        match self.what() {
            libc::IN_CREATE | libc::IN_DELETE => !self.name.is_empty(),
            libc::IN_DELETE_SELF | libc::IN_IGNORED => self.name.is_empty() && !self.is_directory(),
            what => HARMLESS.contains(&what),
        }
    }

    fn describe(&self) -> String {
        let named = NAMES.iter().find(|(what, _)| *what == self.what());
        let what = named.map_or_else(|| format!("{:#x}", self.mask), |(_, name)| (*name).to_owned());
        let name = String::from_utf8_lossy(&self.name);
        format!("{what} {name} of watch {}", self.watch).replace("  ", " ")
    }
}

pub(super) fn from_kernel(queue: InotifyQueue) -> Vec<Event> {
    let events = queue.events.into_iter().map(|event| Event {
        watch: event.watch,
        mask: event.mask,
        name: event.name,
    });
    events.collect()
}

/// Why events can't be caused; `None` where they can.
pub(super) fn obstacle(events: &[Event], watches: &[Watch]) -> Option<String> {
    let impossible = |event: &Event| {
        let event = event.describe();
        Some(format!(
            "an event that nobody has read, {event}, can't be made to happen again"
        ))
    };
    // Of each watch that is none any more: whether its last event has come, and whether it was about a directory.
    let mut ended: HashMap<i32, bool> = HashMap::new();
    let mut directories: HashMap<i32, bool> = HashMap::new();
    let mut before: Option<&Event> = None;
    for event in events {
        let lives = watches.iter().any(|watch| watch.number == event.watch);
        // The kernel joins those that are alike, but for the last one of a watch.
        let alike = before == Some(event);
        let fits = if lives {
            HARMLESS.contains(&event.what())
        } else {
            let is_last = event.what() == libc::IN_IGNORED;
            let early = ended.insert(event.watch, is_last) != Some(true);
            early && event.can_be_staged() && is_consistent(event, &mut directories)
        };
        let positive = (1..i32::MAX).contains(&event.watch);
        // With the file its watch goes.
        let deleted = before.is_some_and(|before| before.what() == libc::IN_DELETE_SELF);
        let follows = before.is_some_and(|before| before.watch == event.watch) && event.what() == libc::IN_IGNORED;
        if alike || !fits || !positive || !event.has_possible_name() || (deleted && !follows) {
            return impossible(event);
        }
        before = Some(event);
    }
    let unended = events.iter().find(|event| ended.get(&event.watch) == Some(&false));
    unended.and_then(impossible)
}

/// Whether an event is about the same kind of file as others of its watch.
fn is_consistent(event: &Event, directories: &mut HashMap<i32, bool>) -> bool {
    // These two never tell.
    if [libc::IN_IGNORED, libc::IN_DELETE_SELF].contains(&event.what()) {
        return true;
    }
    let directory = !event.name.is_empty() || event.is_directory();
    *directories.entry(event.watch).or_insert(directory) == directory
}

/// Whether a watch that is none any more was one of a directory.
pub(super) fn was_directory(watch: i32, events: &[Event]) -> bool {
    let mut own = events.iter().filter(|event| event.watch == watch);
    own.any(|event| !event.name.is_empty() || event.is_directory())
}

#[cfg(test)]
mod tests {
    use super::{Event, Watch, obstacle};
    use libc::{IN_CREATE, IN_DELETE_SELF, IN_IGNORED, IN_MODIFY, IN_Q_OVERFLOW};

    fn event(watch: i32, mask: u32, name: &str) -> Event {
        let name = name.as_bytes().to_vec();
        Event { watch, mask, name }
    }

    fn is_possible(events: &[Event]) -> bool {
        let watch = Watch {
            number: 1,
            mask: 0,
            path: b"/tmp".to_vec(),
        };
        obstacle(events, &[watch]).is_none()
    }

    #[test]
    fn what_changes_nothing_is_possible() {
        let modified = || event(1, IN_MODIFY, "log");
        assert!(is_possible(&[]));
        assert!(is_possible(&[modified(), event(1, IN_MODIFY, ""), modified()]));
        assert!(!is_possible(&[modified(), modified()]));
        assert!(!is_possible(&[event(1, IN_CREATE, "log")]));
        assert!(!is_possible(&[event(1, IN_MODIFY, "../log")]));
        assert!(!is_possible(&[event(-1, IN_Q_OVERFLOW, "")]));
    }

    #[test]
    fn watches_that_are_gone_end_with_their_last_event() {
        let (created, last) = (|| event(2, IN_CREATE, "new"), || event(2, IN_IGNORED, ""));
        assert!(is_possible(&[created(), last()]));
        assert!(is_possible(&[last()]));
        assert!(!is_possible(&[created()]));
        assert!(!is_possible(&[last(), created()]));
        assert!(!is_possible(&[created(), event(2, IN_MODIFY, ""), last()]));
        let deleted = || event(2, IN_DELETE_SELF, "");
        assert!(is_possible(&[created(), deleted(), last()]));
        assert!(!is_possible(&[deleted(), event(1, IN_MODIFY, ""), last()]));
    }
}
