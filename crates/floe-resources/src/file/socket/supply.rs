//! New sockets in the tree's network namespaces. A task makes them, several at once: to set a task to work, twice, takes as
//! long as to make dozens.

use super::{Makers, fetch};
use crate::file::{FileError, OpenContext};
use std::{cell::RefCell, collections::HashMap, os::fd::OwnedFd};

/// Family, kind and protocol.
pub(super) type SocketKind = (i32, i32, i32);

/// As many as are made at once; they stay open until they are used.
const MOST: usize = 32;

/// Sockets that wait to be used, by network namespace and kind. Those that are left are closed.
#[derive(Debug, Default)]
pub(in crate::file) struct Supply(RefCell<HashMap<(u32, SocketKind), Stock>>);

#[derive(Debug, Default)]
struct Stock {
    sockets: Vec<OwnedFd>,
    /// How many were made the last time.
    made: usize,
}

/// A new socket in the network namespace of a file.
pub(super) fn new_in_tree(id: u32, kind: SocketKind, context: &OpenContext<'_>) -> Result<OwnedFd, FileError> {
    new_in_network(id, (context.network(id), kind), context)
}

/// A new socket in one of the tree's network namespaces.
pub(super) fn new_in_network(
    id: u32,
    (network, kind): (u32, SocketKind),
    context: &OpenContext<'_>,
) -> Result<OwnedFd, FileError> {
    let mut stocks = context.supply.0.borrow_mut();
    let stock = stocks.entry((network, kind)).or_default();
    if let Some(socket) = stock.sockets.pop() {
        return Ok(socket);
    }
    stock.made = (2 * stock.made).clamp(1, MOST);
    stock.sockets = made(id, (network, kind), stock.made, context.makers())?;
    Ok(stock.sockets.pop().expect("one at least was made"))
}

/// One that is not made ahead.
pub(super) fn new_alone(id: u32, place: (u32, SocketKind), makers: Makers<'_>) -> Result<OwnedFd, FileError> {
    Ok(made(id, place, 1, makers)?.remove(0))
}

fn made(
    id: u32,
    (network, (family, kind, protocol)): (u32, SocketKind),
    count: usize,
    makers: Makers<'_>,
) -> Result<Vec<OwnedFd>, FileError> {
    let puppet = makers.first(id)?;
    let visit = makers.visit(id, puppet, network)?;
    let mut batch = puppet.batch();
    let arguments = [family as u64, (kind | libc::SOCK_CLOEXEC) as u64, protocol as u64];
    let calls: Vec<_> = visit.during(&mut batch, |batch| {
        let calls = (0..count).map(|_| batch.call("make a socket", libc::SYS_socket, &arguments));
        calls.collect()
    });
    puppet.run(&mut batch)?;
    let numbers: Vec<_> = calls.into_iter().map(|call| batch.result(call) as i32).collect();
    fetch(id, puppet, &numbers)
}
