//! What a monitor holds of its sandbox's streams, told to a checkpoint.
//!
//! ```text
//! checkpoint                    monitor
//!    | SURVEY ---------------->  reads all that the stopped workload has written; from now on takes no input
//!    | <---------------- WAITING (as often as needed), SURVEYED
//!    | hang up --------------->  goes on
//! ```

use crate::{AttachError, Client, message::kind};
use nix::errno::Errno;
use std::path::{Path, PathBuf};

/// What a monitor holds. It keeps still until this is dropped.
#[derive(Debug)]
pub struct Survey {
    /// The log: all that the workload has written.
    pub log: PathBuf,
    /// Bytes of it.
    pub log_bytes: u64,
    /// Input that is not in the workload's pipe yet.
    pub waiting: Vec<u8>,
    /// Whether the end of the input follows.
    pub input_ended: bool,
    /// Whether the terminal holds a line that has not ended.
    pub unfinished_line: bool,
    _client: Client,
}

impl Survey {
    /// Asks the monitor of the sandbox in `folder`, whose workload must be stopped.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn take(folder: &Path) -> Result<Self, AttachError> {
        let client = Client::connect(folder)?;
        client.send(kind::SURVEY, &[])?;
        let mut waiting = Vec::new();
        loop {
            match client.receive()? {
                Some((kind::WAITING, bytes)) => waiting.extend(bytes),
                Some((kind::SURVEYED, payload)) => {
                    let Ok([length @ .., ended, unfinished]) = <[u8; 10]>::try_from(payload) else {
                        return Err(AttachError::Talk(Errno::EPROTO));
                    };
                    return Ok(Self {
                        log: folder.join("log"),
                        log_bytes: u64::from_le_bytes(length),
                        waiting,
                        input_ended: ended == 1,
                        unfinished_line: unfinished == 1,
                        _client: client,
                    });
                }
                Some(_) | None => return Err(AttachError::Talk(Errno::ECONNRESET)),
            }
        }
    }
}
