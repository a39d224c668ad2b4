//! The kernel's own memory, which is opened once for all files, when the first of them asks for it.

use floe_sys::kernel::{FileMemory, InotifyQueue, MessageQueue, UnacceptedConnection, WaitingConnection};
use std::{cell::OnceCell, io, os::fd::BorrowedFd};

/// It, or why it can't be read.
#[derive(Default)]
pub(super) struct Memory(OnceCell<Result<FileMemory, String>>);

impl Memory {
    fn get(&self) -> io::Result<&FileMemory> {
        let opened = self
            .0
            .get_or_init(|| FileMemory::open().map_err(|error| error.to_string()));
        opened.as_ref().map_err(|why| io::Error::other(why.clone()))
    }

    /// What an inotify instance holds.
    pub(super) fn inotify(&self, instance: BorrowedFd<'_>) -> io::Result<InotifyQueue> {
        self.get()?.inotify(instance)
    }

    /// What a message queue holds.
    pub(super) fn message_queue(&self, queue: BorrowedFd<'_>) -> io::Result<MessageQueue> {
        self.get()?.message_queue(queue)
    }

    /// Connections that wait to be accepted.
    pub(super) fn waiting_connections(&self, listener: BorrowedFd<'_>) -> io::Result<Vec<WaitingConnection>> {
        self.get()?.waiting_connections(listener)
    }

    /// The same of a unix socket.
    pub(super) fn unaccepted_connections(&self, listener: BorrowedFd<'_>) -> io::Result<Vec<UnacceptedConnection>> {
        self.get()?.unaccepted_connections(listener)
    }

    /// What tells a socket from all others.
    pub(super) fn socket_place(&self, socket: BorrowedFd<'_>) -> io::Result<u64> {
        self.get()?.socket_place(socket)
    }

    /// What tells an open file from all others.
    pub(super) fn file_place(&self, file: BorrowedFd<'_>) -> io::Result<u64> {
        self.get()?.file_place(file)
    }
}
