//! Unix sockets as the kernel lists them: those of the tree's network namespace, and for other ends those of floe's own. Paths
//! lead from one to the other, abstract names don't.

use crate::{
    file::{FileError, FoundFile},
    ns,
};
use floe_image::record::NamespaceOrigin;
use floe_sys::socket::{UnixSocket, unix_sockets};
use nix::sched::CloneFlags;
use std::collections::{HashMap, HashSet};

/// All of them; asked for once.
pub(super) struct Listed {
    sockets: HashMap<u32, UnixSocket>,
    /// Those whose connections nobody has accepted yet.
    waiting: HashSet<u32>,
    /// Those of floe's network namespace, where that is another one.
    beside: HashMap<u32, UnixSocket>,
    /// Whether it is not.
    pub is_floes: bool,
}

impl Listed {
    /// Those that a file of the tree is among.
    pub(super) fn read(file: &FoundFile) -> Result<Self, FileError> {
        let listed = ns::inside::run(file.viewer, CloneFlags::CLONE_NEWNET, || Ok(unix_sockets()?));
        let sockets = listed.map_err(|error| FileError::System {
            action: "list the sockets like",
            object: file.title(),
            source: std::io::Error::other(error),
        })?;
        let waiting = sockets.values().flat_map(|socket| &socket.waiting).copied().collect();
        let origin = ns::origin(file.viewer, "net").map_err(|error| FileError::System {
            action: "look at the network of",
            object: file.title(),
            source: std::io::Error::other(error),
        })?;
        let is_floes = origin == NamespaceOrigin::Host;
        let beside = if is_floes { Ok(HashMap::new()) } else { unix_sockets() };
        Ok(Self {
            sockets,
            waiting,
            beside: beside.map_err(FileError::system("list the sockets beside", file.title()))?,
            is_floes,
        })
    }

    /// One of the tree's network namespace.
    pub(super) fn socket(&self, inode: u32) -> Option<&UnixSocket> {
        self.sockets.get(&inode)
    }

    /// One of either.
    pub(super) fn any(&self, inode: u32) -> Option<&UnixSocket> {
        self.sockets.get(&inode).or_else(|| self.beside.get(&inode))
    }

    /// Whether it is one whose connection nobody has accepted yet.
    pub(super) fn waits(&self, inode: u32) -> bool {
        self.waiting.contains(&inode)
    }

    /// Whether one of the tree's network namespace has a name.
    pub(super) fn has_name(&self, name: &[u8]) -> bool {
        self.sockets.values().any(|one| one.name.as_deref() == Some(name))
    }

    /// Whether one of either listens at a name.
    pub(super) fn is_listened_at(&self, name: &[u8], kind: i32) -> bool {
        let mut all = self.sockets.values().chain(self.beside.values());
        all.any(|one| one.listens && one.kind == kind && one.name.as_deref() == Some(name))
    }
}
