//! Parsers for /proc, as proc(5) and Documentation/filesystems/proc.rst describe it. Each takes text, so that captured
//! files are its tests, with a thin `read` beside it.

mod autogroup;
mod cgroups;
mod descriptor;
mod limits;
mod maps;
mod mounts;
mod runs;
mod stat;
mod status;
mod timers;

pub use autogroup::autogroup_nice;
pub use cgroups::{CgroupsOf, OwnCgroup, own_cgroups};
pub use descriptor::{Descriptors, FdInfo, descriptor_count, descriptors};
pub use limits::{LIMITS, limits};
pub use maps::{Mapping, VmFlag};
pub use mounts::{MountInfo, mount_points, mounts_in};
pub use runs::Runs;
pub use stat::Stat;
pub use status::Status;
pub use timers::{PosixTimer, armed_on_realtime};

use crate::Pid;
use std::{
    fs::File,
    io::{self, Read},
};

/// A file of /proc that does not look as documented.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// It could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A field is missing or is no number.
    #[error("{path}: field {field} is missing or malformed")]
    Field {
        /// The file.
        path: String,
        /// The field.
        field: &'static str,
    },
}

impl ProcError {
    /// Whether the cause is that the task no longer exists.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Read { source, .. } => {
                source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ESRCH)
            }
            Self::Field { .. } => false,
        }
    }
}

/// Reads a whole file of /proc as bytes.
///
/// # Errors
/// [`ProcError::Read`].
pub fn read(path: &str) -> Result<Vec<u8>, ProcError> {
    read_whole(path, false).map_err(|source| ProcError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Reads a file that is one text to the kernel (`single_open` of linux/seq_file.h), not a list: a call that does not fill its
/// buffer has read all of it.
///
/// # Errors
/// [`ProcError::Read`].
pub fn read_at_once(path: &str) -> Result<Vec<u8>, ProcError> {
    read_whole(path, true).map_err(|source| ProcError::Read {
        path: path.to_owned(),
        source,
    })
}

/// As std::fs::read, but with room from the start: these files say that they have no bytes, and a small first guess makes
/// many calls of it.
fn read_whole(path: &str, at_once: bool) -> io::Result<Vec<u8>> {
    const ROOM: usize = 8 << 10;
    let mut file = File::open(path)?;
    let mut bytes = vec![0; ROOM];
    let mut filled = 0;
    loop {
        match file.read(&mut bytes[filled..]) {
            Ok(0) => {
                bytes.truncate(filled);
                return Ok(bytes);
            }
            Ok(got) => {
                filled += got;
                if at_once && filled < bytes.len() {
                    bytes.truncate(filled);
                    return Ok(bytes);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if filled == bytes.len() {
            bytes.resize(2 * filled, 0);
        }
    }
}

/// Reads a whole file of /proc as text; bytes that are not UTF-8 are replaced.
///
/// # Errors
/// [`ProcError::Read`].
pub fn read_text(path: &str) -> Result<String, ProcError> {
    read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// All processes, lowest PID first.
///
/// # Errors
/// [`ProcError::Read`].
pub fn processes() -> Result<Vec<Pid>, ProcError> {
    let mut found = numbers("/proc")?;
    found.sort_unstable();
    Ok(found)
}

/// The threads of a process, the leader first, then oldest first.
///
/// # Errors
/// [`ProcError::Read`].
pub fn threads(pid: Pid) -> Result<Vec<Pid>, ProcError> {
    let mut found = numbers(&format!("/proc/{pid}/task"))?;
    // The kernel lists them in the order they were made, which their ids tell only until those begin anew.
    found.sort_by_key(|tid| *tid != pid);
    Ok(found)
}

/// Entries of a directory that are numbers.
fn numbers(directory: &str) -> Result<Vec<Pid>, ProcError> {
    let wrap = |source| ProcError::Read {
        path: directory.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(wrap)? {
        let name = entry.map_err(wrap)?.file_name();
        found.extend(name.to_str().and_then(|name| name.parse().ok()).map(Pid::new));
    }
    Ok(found)
}

/// The children of all threads of a process, zombies among them.
///
/// # Errors
/// [`ProcError::Read`].
pub fn children(pid: Pid) -> Result<Vec<Pid>, ProcError> {
    let mut found = Vec::new();
    for tid in threads(pid)? {
        found.extend(children_of(pid, tid)?);
    }
    Ok(found)
}

/// Those that one of its threads made.
///
/// # Errors
/// [`ProcError`].
pub fn children_of(pid: Pid, tid: Pid) -> Result<Vec<Pid>, ProcError> {
    let text = read_text(&format!("/proc/{pid}/task/{tid}/children"))?;
    let words = text.split_ascii_whitespace().filter_map(|word| word.parse().ok());
    Ok(words.map(Pid::new).collect())
}
