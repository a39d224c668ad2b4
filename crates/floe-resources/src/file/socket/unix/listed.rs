//! Unix sockets as the kernel lists them: those of the tree's network namespaces, and for other ends those of floe's own. Paths
//! lead from one to the other, abstract names don't.

use crate::{
    file::{FileError, FoundFile},
    ns::Others,
};
use floe_sys::socket::{UnixSocket, unix_sockets};
use std::{
    collections::{HashMap, HashSet},
    io,
};

/// All of them; asked for once.
pub(super) struct Listed {
    /// With the number of the network namespace.
    sockets: HashMap<u32, (u32, UnixSocket)>,
    /// Those whose connections nobody has accepted yet.
    waiting: HashSet<u32>,
    /// Those of floe's network namespace, where that is another one.
    beside: HashMap<u32, UnixSocket>,
    /// The number of the tree's network namespace that is floe's own, if one is.
    floes: Option<u32>,
}

impl Listed {
    /// Those that a file of the tree is among.
    pub(super) fn read(file: &FoundFile, others: &Others) -> Result<Self, FileError> {
        let failed = |action| {
            move |error| FileError::System {
                action,
                object: file.title(),
                source: io::Error::other(error),
            }
        };
        let mut found = Self {
            sockets: HashMap::new(),
            waiting: HashSet::new(),
            beside: HashMap::new(),
            floes: None,
        };
        for space in others.networks() {
            let listed = space
                .run(|| Ok(unix_sockets()?))
                .map_err(failed("list the sockets like"))?;
            let waiting = listed.values().flat_map(|socket| &socket.waiting);
            found.waiting.extend(waiting.copied());
            let listed = listed.into_iter();
            found
                .sockets
                .extend(listed.map(|(inode, one)| (inode, (space.number, one))));
            if space.is_floes().map_err(failed("look at the network of"))? {
                found.floes = Some(space.number);
            }
        }
        if found.floes.is_none() {
            let beside = unix_sockets().map_err(FileError::system("list the sockets beside", file.title()));
            found.beside = beside?;
        }
        Ok(found)
    }

    /// One of the tree's network namespaces.
    pub(super) fn socket(&self, inode: u32) -> Option<&UnixSocket> {
        self.sockets.get(&inode).map(|(_, socket)| socket)
    }

    /// One of these, or of floe's.
    pub(super) fn any(&self, inode: u32) -> Option<&UnixSocket> {
        self.socket(inode).or_else(|| self.beside.get(&inode))
    }

    /// Whether it is one whose connection nobody has accepted yet.
    pub(super) fn waits(&self, inode: u32) -> bool {
        self.waiting.contains(&inode)
    }

    /// Whether a network namespace of the tree is floe's own.
    pub(super) fn is_floes(&self, network: u32) -> bool {
        self.floes == Some(network)
    }

    /// Whether one of a network namespace of the tree has a name.
    pub(super) fn has_name(&self, network: u32, name: &[u8]) -> bool {
        let mut all = self.sockets.values().filter(|(number, _)| *number == network);
        all.any(|(_, one)| one.name.as_deref() == Some(name))
    }

    /// Whether one of either listens at a name.
    pub(super) fn is_listened_at(&self, name: &[u8], kind: i32) -> bool {
        let own = self.sockets.values().map(|(_, socket)| socket);
        let mut all = own.chain(self.beside.values());
        all.any(|one| one.listens && one.kind == kind && one.name.as_deref() == Some(name))
    }
}
