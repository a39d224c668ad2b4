//! Files that signals are read from (signalfd(2)). What is pending belongs to whoever reads.

use super::{Lines, is_anonymous};
use crate::file::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, set_status};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::event;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The kind.
pub struct SignalFd;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// Bit N-1 for signal N.
    mask: u64,
}

impl FileKind for SignalFd {
    fn name(&self) -> &'static str {
        "signalfd"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        is_anonymous(file, "signalfd")
    }

    fn dump(&self, file: &FoundFile, _context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let mask = Lines::read(file)?.number("sigmask", 16)?;
        Ok(Some(codec::encode(&Body { mask })?))
    }

    fn open(&self, record: &OpenFileRecord, _context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let object = format!("open file {}", record.id);
        let file = event::signalfd(body.mask, 0).map_err(FileError::system("make a file of signals as", object))?;
        set_status(file.as_fd(), record)?;
        Ok(file)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        let signals = (1..=64).filter(|signal| body.mask & (1 << (signal - 1)) != 0);
        let numbers: Vec<String> = signals.map(|signal| signal.to_string()).collect();
        Ok(format!("of signals {}", numbers.join(" ")))
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        decode::<Body>(record).map(|_| None)
    }
}
