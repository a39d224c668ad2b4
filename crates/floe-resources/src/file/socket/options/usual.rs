//! The options of new sockets, which others are compared with. Read once for all of a kind: most names that there might be
//! such sockets don't have, and to ask for each of them takes longer than all else that is done with a socket.

use super::{levels::LEVELS, read};
use crate::file::socket::supply::SocketKind;
use floe_sys::socket::{new, option};
use nix::errno::Errno;
use std::{
    cell::RefCell,
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd},
    rc::Rc,
};

/// Those of a kind of sockets.
#[derive(Debug)]
pub(in crate::file::socket) struct Usual(Vec<UsualOption>);

/// One that such sockets have.
#[derive(Debug)]
pub(super) struct UsualOption {
    pub level: i32,
    pub name: i32,
    /// Whether another value is carried.
    pub carried: bool,
    /// `None` where a new socket has none yet.
    pub value: Option<Vec<u8>>,
}

impl Usual {
    fn of(fresh: BorrowedFd<'_>, levels: &[i32]) -> Result<Self, Errno> {
        let mut all = Vec::new();
        for table in LEVELS.iter().filter(|table| levels.contains(&table.level)) {
            let level = table.level;
            for name in table.names.clone().filter(|name| !table.no_settings.contains(name)) {
                if let Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) = option(fresh, level, name) {
                    continue;
                }
                all.push(UsualOption {
                    level,
                    name,
                    carried: table.carried.contains(&name),
                    value: read(fresh, level, name)?,
                });
            }
        }
        Ok(Self(all))
    }

    pub(super) fn all(&self) -> &[UsualOption] {
        &self.0
    }
}

/// Those of all kinds that were asked for.
#[derive(Debug, Default)]
pub(in crate::file) struct UsualOptions(RefCell<HashMap<SocketKind, Rc<Usual>>>);

impl UsualOptions {
    /// Those of a kind, which has options on these levels.
    pub(in crate::file::socket) fn of(&self, kind: SocketKind, levels: &[i32]) -> Result<Rc<Usual>, Errno> {
        let mut known = self.0.borrow_mut();
        if let Some(usual) = known.get(&kind) {
            return Ok(Rc::clone(usual));
        }
        let usual = Rc::new(Usual::of(new(kind.0, kind.1, kind.2)?.as_fd(), levels)?);
        known.insert(kind, Rc::clone(&usual));
        Ok(usual)
    }
}
