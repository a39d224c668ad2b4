//! Counters (eventfd(2)).

use super::{Lines, is_anonymous};
use crate::file::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, set_status};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::event;
use nix::unistd::write;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The kind.
pub struct EventFd;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    count: u64,
    semaphore: bool,
}

impl FileKind for EventFd {
    fn name(&self) -> &'static str {
        "eventfd"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        is_anonymous(file, "eventfd")
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let lines = Lines::read(file)?;
        let count = lines.number("eventfd-count", 16)?;
        if count == u64::MAX {
            let reason = "only the kernel can bring a counter to its end, and poll says POLLERR then";
            context
                .refusals
                .add(Some(&file.subject), file.title(), reason, "read it");
            return Ok(None);
        }
        let semaphore = match lines.all("eventfd-semaphore").next() {
            Some(value) => value != "0",
            // Linux before 6.5 does not tell; a counter is read either way.
            None => {
                let reason = "this kernel does not tell whether it counts down by one (EFD_SEMAPHORE)";
                context
                    .refusals
                    .add(Some(&file.subject), file.title(), reason, "close it");
                return Ok(None);
            }
        };
        Ok(Some(codec::encode(&Body { count, semaphore })?))
    }

    fn open(&self, record: &OpenFileRecord, _context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let flags = if body.semaphore { libc::EFD_SEMAPHORE } else { 0 };
        let object = || format!("open file {}", record.id);
        // It does not wait for room if the count is more than any counter has.
        let counter =
            event::eventfd(flags | libc::EFD_NONBLOCK).map_err(FileError::system("make a counter as", object()))?;
        if body.count > 0 {
            write(counter.as_fd(), &body.count.to_ne_bytes())
                .map_err(FileError::system("set the counter of", object()))?;
        }
        set_status(counter.as_fd(), record)?;
        Ok(counter)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        Ok(format!("at {}", body.count))
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        decode::<Body>(record).map(|_| None)
    }
}
