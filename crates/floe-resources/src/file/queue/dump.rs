//! Finds the queues of a tree's IPC namespaces: those that have names, and those that only have users.

use super::super::{DumpContext, FileError, FoundFile, memory::Memory};
use crate::{ipc::IpcSpaces, mm::FileIdentity, refusal::Refusals};
use floe_image::record::{NoticeRecord, NsPid, PosixMessageRecord, PosixQueueRecord};
use floe_sys::{Pid, mqueue};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, Metadata},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::{FileExt, MetadataExt},
    },
};

/// The queues found so far.
#[derive(Debug, Default)]
pub struct FoundQueues {
    /// The number of the namespace of each, and its place there; none where it was refused.
    places: HashMap<FileIdentity, Option<(u32, u32)>>,
    records: BTreeMap<u32, Vec<PosixQueueRecord>>,
}

/// A queue with a name: that, and the queue itself, which is only there to be looked at.
type Named = (Vec<u8>, File);

impl FoundQueues {
    /// Those that have names, in the tree's IPC namespaces.
    pub fn survey(
        spaces: &IpcSpaces,
        processes: &HashMap<Pid, i32>,
        (memory, refusals): (&Memory, &mut Refusals),
    ) -> Result<Self, FileError> {
        let mut found = Self::default();
        for space in spaces.all() {
            let named = space.queues.as_ref().map(list).transpose();
            let named = named.map_err(|source| FileError::System {
                action: "look for",
                object: space.title("message queues"),
                source,
            })?;
            for (name, queue) in named.into_iter().flatten() {
                let title = space.title(&format!("message queue /{}", String::from_utf8_lossy(&name)));
                let system = |action| FileError::system(action, title.clone());
                let metadata = queue.metadata().map_err(|_| system("stat")(Errno::EIO))?;
                let read = read((&queue, &metadata), (name, false), processes, memory)?;
                let place = match read {
                    Ok(record) => Some(found.add(space.number, record)),
                    Err(reason) => {
                        refusals.add(None, title, reason, "receive its messages, or mq_unlink it");
                        None
                    }
                };
                found.places.insert(FileIdentity::from(&metadata), place);
            }
        }
        Ok(found)
    }

    fn add(&mut self, namespace: u32, record: PosixQueueRecord) -> (u32, u32) {
        let records = self.records.entry(namespace).or_default();
        records.push(record);
        (namespace, records.len() as u32 - 1)
    }

    /// All of them, by the numbers of their namespaces.
    pub fn into_records(self) -> BTreeMap<u32, Vec<PosixQueueRecord>> {
        self.records
    }
}

/// The queues of a namespace.
fn list(root: &File) -> io::Result<Vec<Named>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut named = Vec::new();
    for entry in Dir::openat(root, ".", flags, Mode::empty())?.iter() {
        let name = entry?.file_name().to_owned();
        if name != *c"." && name != *c".." {
            let queue = File::from(openat(root, name.as_c_str(), flags, Mode::empty())?);
            named.push((name.into_bytes(), queue));
        }
    }
    named.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(named)
}

/// The namespace and the place of the queue behind a file; `None` where it was refused.
pub fn number_of(file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<(u32, u32)>, FileError> {
    let identity = file.identity();
    if let Some(place) = context.queues.places.get(&identity) {
        return Ok(*place);
    }
    let name = file.link.strip_suffix(b" (deleted)").unwrap_or(&file.link);
    let name = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
    let read = match context.contents.ipc.of_queues(file.metadata.dev()) {
        Some(namespace) => read(
            (file, &file.metadata),
            (name, true),
            &context.processes,
            &context.memory,
        )?
        .map(|record| (namespace, record)),
        None => Err("it belongs to the host's IPC namespace, or to one that no task of the tree is in".to_owned()),
    };
    let place = match read {
        Ok((namespace, record)) => Some(context.queues.add(namespace, record)),
        Err(reason) => {
            context
                .refusals
                .add(Some(&file.subject), file.title(), reason, "close it");
            None
        }
    };
    context.queues.places.insert(identity, place);
    Ok(place)
}

/// What a queue is and holds, or why it can't be carried.
fn read(
    (queue, metadata): (&impl AsFd, &Metadata),
    (name, unlinked): (Vec<u8>, bool),
    processes: &HashMap<Pid, i32>,
    memory: &Memory,
) -> Result<Result<PosixQueueRecord, String>, FileError> {
    let queue = queue.as_fd();
    let system = |action| FileError::system(action, format!("message queue /{}", String::from_utf8_lossy(&name)));
    let attributes = mqueue::attributes(queue).map_err(system("read the attributes of"))?;
    let told = Told::read(queue).map_err(|source| FileError::System {
        action: "read",
        object: "a message queue".to_owned(),
        source,
    })?;
    let mut record = PosixQueueRecord {
        name,
        unlinked,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        most_messages: attributes.most_messages as u32,
        message_bytes: attributes.message_bytes as u32,
        messages: Vec::new(),
        notice: None,
    };
    if attributes.messages == 0 && told.is_none() {
        return Ok(Ok(record));
    }
    let held = match memory.message_queue(queue) {
        Ok(held) if held.messages.len() as u64 == attributes.messages => held,
        Ok(_) => return Ok(Err("its messages are others than it says".to_owned())),
        Err(error) => {
            let reason = format!("what it holds can't be read from the kernel's memory by floe: {error}");
            return Ok(Err(reason));
        }
    };
    record.messages = held
        .messages
        .into_iter()
        .map(|message| PosixMessageRecord {
            priority: message.priority,
            text: message.text,
        })
        .collect();
    // Of equal ones the first one stays first.
    record
        .messages
        .sort_by_key(|message| std::cmp::Reverse(message.priority));
    record.notice = match told.map(|told| told.notice(processes, held.value)).transpose() {
        Ok(notice) => notice,
        Err(reason) => return Ok(Err(reason)),
    };
    Ok(Ok(record))
}

/// Who is told of messages.
struct Told {
    how: i32,
    signal: i32,
    owner: Pid,
}

impl Told {
    /// `QSIZE:129 NOTIFY:0 SIGNO:10 NOTIFY_PID:8260`, with blanks.
    fn read(queue: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let readable = File::open(format!("/proc/self/fd/{}", queue.as_raw_fd()))?;
        let mut buffer = [0; 200];
        let length = readable.read_at(&mut buffer, 0)?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        let number = |key: &str| -> io::Result<i32> {
            let mut pairs = text.split_ascii_whitespace().filter_map(|word| word.split_once(':'));
            let value = pairs
                .find(|(name, _)| *name == key)
                .and_then(|(_, value)| value.parse().ok());
            value.ok_or_else(|| io::Error::other(format!("it does not tell {key}")))
        };
        let owner = number("NOTIFY_PID")?;
        Ok(if owner == 0 {
            None
        } else {
            Some(Self {
                how: number("NOTIFY")?,
                signal: number("SIGNO")?,
                owner: Pid::new(owner),
            })
        })
    }

    fn notice(&self, processes: &HashMap<Pid, i32>, value: u64) -> Result<NoticeRecord, String> {
        let pid = processes.get(&self.owner);
        let pid =
            pid.ok_or_else(|| format!("process {}, which is not in the tree, is told of messages", self.owner))?;
        let signal = match self.how {
            libc::SIGEV_SIGNAL => Some(self.signal),
            libc::SIGEV_NONE => None,
            _ => return Err("a thread is told of messages (SIGEV_THREAD), by a socket of the C library's".to_owned()),
        };
        Ok(NoticeRecord {
            pid: NsPid(*pid),
            signal,
            value,
        })
    }
}
