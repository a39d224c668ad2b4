//! What POSIX message queues hold: ipc/mqueue.c, ipc/msgutil.c.

use super::FileMemory;
use std::{io, os::fd::BorrowedFd};

/// What is asked for here.
pub(super) const STRUCTURES: [&str; 5] = [
    "mqueue_inode_info",
    "posix_msg_tree_node",
    "rb_node",
    "msg_msg",
    "msg_msgseg",
];

/// Messages of a queue, HARD_MSGMAX, and bytes of one, HARD_MSGSIZEMAX: linux/ipc_namespace.h.
const MOST_MESSAGES: usize = 65_536;
const MOST_BYTES: usize = 16 << 20;

const PAGE: usize = 4096;

/// What a queue holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MessageQueue {
    /// Of who is to be told of a message: sigev_value.
    pub value: u64,
    /// What waits; of equal priority the first one first.
    pub messages: Vec<PriorityMessage>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriorityMessage {
    /// Higher ones are received first.
    pub priority: u32,
    /// Its bytes.
    pub text: Vec<u8>,
}

impl FileMemory {
    /// What a queue that the caller has open holds. All who use it stand still.
    ///
    /// # Errors
    /// Those of reading.
    pub fn message_queue(&self, queue: BorrowedFd<'_>) -> io::Result<MessageQueue> {
        let memory = &self.0;
        let inode = memory.member("file", memory.file(queue)?, "f_inode")?;
        let queue = inode - memory.types.offset("mqueue_inode_info", "vfs_inode")?;
        // struct sigevent begins with the value; struct rb_root is a pointer.
        let value = memory.member("mqueue_inode_info", queue, "notify")?;
        let mut messages = Vec::new();
        let node = memory.types.offset("posix_msg_tree_node", "rb_node")?;
        let mut nodes = vec![memory.member("mqueue_inode_info", queue, "msg_tree")?];
        let mut seen = 0;
        while let Some(place) = nodes.pop() {
            if place == 0 {
                continue;
            }
            seen += 1;
            if seen > MOST_MESSAGES {
                return Err(io::Error::other("the kernel's tree of messages has no end"));
            }
            nodes.push(memory.member("rb_node", place, "rb_left")?);
            nodes.push(memory.member("rb_node", place, "rb_right")?);
            self.messages_of(place.wrapping_sub(node), &mut messages)?;
        }
        Ok(MessageQueue { value, messages })
    }

    /// Those of one priority.
    fn messages_of(&self, leaf: u64, found: &mut Vec<PriorityMessage>) -> io::Result<()> {
        let memory = &self.0;
        let priority = memory.number("posix_msg_tree_node", leaf, "priority")?;
        let head = leaf + memory.types.offset("posix_msg_tree_node", "msg_list")?;
        let node = memory.types.offset("msg_msg", "m_list")?;
        let mut place = memory.word(head)?;
        while place != head {
            if found.len() >= MOST_MESSAGES {
                return Err(io::Error::other("the kernel's list of messages has no end"));
            }
            let text = self.text(place.wrapping_sub(node))?;
            found.push(PriorityMessage { priority, text });
            place = memory.word(place)?;
        }
        Ok(())
    }

    /// The bytes of a message: behind its structure, and in segments of at most a page.
    fn text(&self, message: u64) -> io::Result<Vec<u8>> {
        let memory = &self.0;
        let length = memory.member("msg_msg", message, "m_ts")? as usize;
        if length > MOST_BYTES {
            return Err(io::Error::other("a message is too long"));
        }
        let mut head = memory.types.size("msg_msg")?;
        let mut part = message;
        let mut next = memory.member("msg_msg", message, "next")?;
        let mut text = Vec::new();
        loop {
            let room = PAGE.saturating_sub(head as usize);
            let bytes = room.min(length - text.len());
            text.extend(memory.bytes(part + head, bytes)?);
            if text.len() == length {
                return Ok(text);
            }
            if next == 0 || bytes == 0 {
                return Err(io::Error::other("a message ends early"));
            }
            (part, head) = (next, memory.types.size("msg_msgseg")?);
            next = memory.member("msg_msgseg", part, "next")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PriorityMessage;
    use crate::{kernel::FileMemory, mqueue};
    use std::{ffi::CString, os::fd::AsFd};

    #[test]
    fn messages_are_seen_and_left() {
        let name = CString::new(format!("floe-test-{}", std::process::id())).expect("no NUL");
        let queue = mqueue::open(&name, libc::O_RDWR | libc::O_NONBLOCK, Some((8, 8000))).expect("a queue");
        mqueue::unlink(&name).expect("its name");
        let memory = FileMemory::open().expect("as root");
        let long: Vec<u8> = (0..8000_u32).map(|number| (number % 251) as u8).collect();
        let sent = [(3, &b"one"[..]), (0, b"least"), (3, b"two"), (32_767, b""), (7, &long)];
        for (priority, text) in sent {
            mqueue::send(queue.as_fd(), priority, text).expect("room");
        }
        let mut wanted: Vec<PriorityMessage> = sent
            .iter()
            .map(|(priority, text)| PriorityMessage {
                priority: *priority,
                text: text.to_vec(),
            })
            .collect();
        wanted.sort_by_key(|message| message.priority);
        for _ in 0..2 {
            let mut found = memory.message_queue(queue.as_fd()).expect("read").messages;
            found.sort_by_key(|message| message.priority);
            assert_eq!(found, wanted);
        }
        assert_eq!(mqueue::attributes(queue.as_fd()).expect("a queue").messages, 5);
    }
}
