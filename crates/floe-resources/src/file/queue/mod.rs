//! POSIX message queues (mq_overview(7)) of IPC namespaces of the tree's own, whoever has them open, with what waits in them and who
//! is told of it. Only the kernel's own memory tells what waits without taking it.

mod dump;
mod make;

use super::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, Holders, OpenContext, decode};
pub(super) use dump::FoundQueues;
use floe_image::{
    codec,
    record::{OpenFileRecord, SandboxRecord},
};
use floe_tracee::Script;
pub(super) use make::{MadeQueues, make_all};
use serde::{Deserialize, Serialize};
use std::os::fd::{BorrowedFd, OwnedFd};

/// The kind.
pub struct Queue;

const NAME: &str = "message-queue";

/// include/uapi/linux/magic.h.
const MQUEUE: i64 = 0x1980_0202;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// The number of its IPC namespace.
    namespace: u32,
    /// Its place there.
    queue: u32,
}

impl FileKind for Queue {
    fn name(&self) -> &'static str {
        NAME
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.filesystem == Some(MQUEUE) && file.file_type() == libc::S_IFREG
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let Some((namespace, queue)) = dump::number_of(file, context)? else {
            return Ok(None);
        };
        Ok(Some(codec::encode(&Body { namespace, queue })?))
    }

    /// All have been opened before: some have lost their names by now.
    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let opened = context.queues.take(record.id);
        opened.ok_or_else(|| FileError::Unknown {
            id: record.id,
            what: "the image lacks its message queue".to_owned(),
        })
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        Ok(match body.namespace {
            0 => format!("queue {}", body.queue),
            namespace => format!("queue {} of namespace {namespace}", body.queue),
        })
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        decode::<Body>(record).map(|_| None)
    }
}

/// The files of a queue, which is known by namespace and place.
fn files_of((namespace, queue): (u32, usize), files: &[OpenFileRecord]) -> impl Iterator<Item = &OpenFileRecord> {
    let own = files.iter().filter(|record| record.kind == NAME);
    let is_it = move |body: Body| (body.namespace, body.queue as usize) == (namespace, queue);
    own.filter(move |record| decode::<Body>(record).is_ok_and(is_it))
}

/// Has processes told of messages, which ends when they close any file of the queue: nothing is closed any more.
///
/// # Errors
/// [`FileError`].
pub fn set_notices(sandbox: &SandboxRecord, files: &[OpenFileRecord], holders: &Holders<'_>) -> Result<(), FileError> {
    let all = sandbox.ipc_namespaces().flat_map(|(namespace, record)| {
        let queues = record.posix.iter().enumerate();
        queues.map(move |(index, queue)| ((namespace, index), queue))
    });
    for (place, queue) in all {
        let Some(notice) = &queue.notice else { continue };
        let number = files_of(place, files).find_map(|record| holders.number(notice.pid.0, record.id));
        let number = number.ok_or_else(|| FileError::Unknown {
            id: 0,
            what: format!(
                "process {} is told of message queue {}, which it lacks",
                notice.pid,
                String::from_utf8_lossy(&queue.name)
            ),
        })?;
        let how = match notice.signal {
            Some(_) => libc::SIGEV_SIGNAL,
            None => libc::SIGEV_NONE,
        };
        // struct sigevent of 64 bytes: the value, the signal, how to tell.
        let mut event = notice.value.to_ne_bytes().to_vec();
        event.extend(notice.signal.unwrap_or(0).to_ne_bytes());
        event.extend(how.to_ne_bytes());
        event.resize(64, 0);
        let mut script = Script::new(holders.puppet(notice.pid.0)?);
        let batch = script.reserve(1, event.len())?;
        let place = batch.data(&event);
        batch.call("have messages told of", libc::SYS_mq_notify, &[number as u64, place]);
        script.run()?;
    }
    Ok(())
}
