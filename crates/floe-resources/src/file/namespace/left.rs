//! UTS namespaces that no task is in, and a descriptor keeps: two names are all that they hold.

use crate::file::{FileError, FoundFile, OpenContext, open_flags, reopen};
use floe_image::record::OpenFileRecord;
use floe_sys::namespace::kind;
use nix::{
    fcntl::OFlag,
    sched::{CloneFlags, setns, unshare},
    sys::{stat::Mode, utsname::uname},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::hash_map::Entry,
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

/// One of them.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Left {
    /// By which several descriptors have one: its inode number where the image was made.
    inode: u64,
    #[serde(with = "serde_bytes")]
    host: Vec<u8>,
    #[serde(with = "serde_bytes")]
    domain: Vec<u8>,
}

/// Runs something on a thread that ends with it.
fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let result = std::thread::scope(|scope| scope.spawn(work).join());
    result.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

/// What the namespace of a file holds; `None` for another kind.
pub(super) fn look(file: &FoundFile) -> Result<Option<Left>, FileError> {
    let open = file.as_fd();
    if kind(open) != Ok(libc::CLONE_NEWUTS) {
        return Ok(None);
    }
    let names = || {
        setns(open, CloneFlags::CLONE_NEWUTS)?;
        let names = uname()?;
        Ok((
            names.nodename().as_bytes().to_vec(),
            names.domainname().as_bytes().to_vec(),
        ))
    };
    let (host, domain) = apart(names).map_err(|source| FileError::System {
        action: "look into",
        object: file.title(),
        source,
    })?;
    Ok(Some(Left {
        inode: file.identity().inode,
        host,
        domain,
    }))
}

impl Left {
    /// A descriptor of it, which is made with the first one.
    pub(super) fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let held = match context.left.entry(self.inode) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(place) => {
                let made = apart(|| self.make()).map_err(|source| FileError::System {
                    action: "make again the UTS namespace of",
                    object: format!("open file {}", record.id),
                    source,
                })?;
                place.insert(made)
            }
        };
        reopen(held.as_fd(), open_flags(record))
    }

    fn make(&self) -> io::Result<OwnedFd> {
        unshare(CloneFlags::CLONE_NEWUTS)?;
        nix::unistd::sethostname(OsStr::from_bytes(&self.host))?;
        floe_sys::namespace::set_domain_name(&self.domain)?;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(nix::fcntl::open("/proc/thread-self/ns/uts", flags, Mode::empty())?)
    }
}
