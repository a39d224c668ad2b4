//! New sockets in the tree's network namespace. A task makes them, several at once: to set a task to work, twice, takes as
//! long as to make dozens.

use super::{Maker, fetch};
use crate::file::{FileError, OpenContext};
use floe_tracee::Puppet;
use std::{cell::RefCell, collections::HashMap, os::fd::OwnedFd};

/// Family, kind and protocol.
pub(super) type SocketKind = (i32, i32, i32);

/// As many as are made at once; they stay open until they are used.
const MOST: usize = 32;

/// Sockets that wait to be used. Those that are left are closed.
#[derive(Debug, Default)]
pub(in crate::file) struct Supply(RefCell<HashMap<SocketKind, Stock>>);

#[derive(Debug, Default)]
struct Stock {
    sockets: Vec<OwnedFd>,
    /// How many were made the last time.
    made: usize,
}

/// A new socket in the tree's network namespace.
pub(super) fn new_in_tree(id: u32, kind: SocketKind, context: &OpenContext<'_>) -> Result<OwnedFd, FileError> {
    let mut stocks = context.supply.0.borrow_mut();
    let stock = stocks.entry(kind).or_default();
    if let Some(socket) = stock.sockets.pop() {
        return Ok(socket);
    }
    stock.made = (2 * stock.made).clamp(1, MOST);
    stock.sockets = made_by(id, kind, stock.made, Maker::of(1).puppet(id, context)?)?;
    Ok(stock.sockets.pop().expect("one at least was made"))
}

/// A new socket that a certain task makes.
pub(super) fn new_by(id: u32, kind: SocketKind, puppet: &Puppet) -> Result<OwnedFd, FileError> {
    Ok(made_by(id, kind, 1, puppet)?.remove(0))
}

fn made_by(
    id: u32,
    (family, kind, protocol): SocketKind,
    count: usize,
    puppet: &Puppet,
) -> Result<Vec<OwnedFd>, FileError> {
    let mut batch = puppet.batch();
    let arguments = [family as u64, (kind | libc::SOCK_CLOEXEC) as u64, protocol as u64];
    let calls: Vec<_> = (0..count)
        .map(|_| batch.call("make a socket", libc::SYS_socket, &arguments))
        .collect();
    puppet.run(&mut batch)?;
    let numbers: Vec<_> = calls.into_iter().map(|call| batch.result(call) as i32).collect();
    fetch(id, puppet, &numbers)
}
