//! The kernel's own memory, which is opened once for all files, when the first of them asks for it.

use floe_sys::{
    Pid,
    kernel::{
        DirectoryNotice, FanotifyGroup, FileMemory, GatheredPacket, HiddenOption, InotifyQueue, MapUse, MarkedQueue,
        MessageQueue, QueuedError, SocketState, UnacceptedConnection, WaitingConnection, WaitingPacket,
    },
};
use std::{cell::OnceCell, io, net::SocketAddr, os::fd::BorrowedFd};

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

    /// Whether it can be read.
    pub(super) fn readable(&self) -> io::Result<()> {
        self.get().map(drop)
    }

    /// What an inotify instance holds.
    pub(super) fn inotify(&self, instance: BorrowedFd<'_>) -> io::Result<InotifyQueue> {
        self.get()?.inotify(instance)
    }

    /// What was asked for through an open directory, by one of `processes`.
    pub(super) fn directory_notices(
        &self,
        directory: BorrowedFd<'_>,
        processes: &[Pid],
    ) -> io::Result<Vec<DirectoryNotice>> {
        self.get()?.directory_notices(directory, processes)
    }

    /// What is told nowhere of a fanotify group.
    pub(super) fn fanotify(&self, group: BorrowedFd<'_>) -> io::Result<FanotifyGroup> {
        self.get()?.fanotify(group)
    }

    /// Who has a map of bpf(2).
    pub(super) fn bpf_map(&self, map: BorrowedFd<'_>) -> io::Result<MapUse> {
        self.get()?.bpf_map(map)
    }

    /// What a queue or stack of bpf(2) holds, of as many bytes each.
    pub(super) fn bpf_queue(&self, map: BorrowedFd<'_>, value_bytes: u32, most: u32) -> io::Result<Vec<u8>> {
        self.get()?.bpf_queue(map, value_bytes, most)
    }

    /// What a message queue holds.
    pub(super) fn message_queue(&self, queue: BorrowedFd<'_>) -> io::Result<MessageQueue> {
        self.get()?.message_queue(queue)
    }

    /// Connections that wait to be accepted.
    pub(super) fn waiting_connections(&self, listener: BorrowedFd<'_>) -> io::Result<Vec<WaitingConnection>> {
        self.get()?.waiting_connections(listener)
    }

    /// What waits in a TCP socket that has been told of urgent data.
    pub(super) fn marked_queue(&self, socket: BorrowedFd<'_>) -> io::Result<Option<MarkedQueue>> {
        self.get()?.marked_queue(socket)
    }

    /// The sequence number behind the urgent byte that a TCP socket has sent, and that was not acknowledged.
    pub(super) fn urgent_sent(&self, socket: BorrowedFd<'_>) -> io::Result<Option<u32>> {
        self.get()?.urgent_sent(socket)
    }

    /// Connections that wait at a unix socket.
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

    /// Packets that wait in a socket, of UDP or another one.
    pub(super) fn waiting_packets(&self, socket: BorrowedFd<'_>, is_udp: bool) -> io::Result<Vec<WaitingPacket>> {
        self.get()?.waiting_packets(socket, is_udp)
    }

    /// What a socket of UDP has put aside, to be sent with what is written next.
    pub(super) fn gathered(&self, socket: BorrowedFd<'_>) -> io::Result<Option<GatheredPacket>> {
        self.get()?.gathered(socket)
    }

    /// Errors that wait in a socket of the internet's with what they are about.
    pub(super) fn queued_errors(&self, socket: BorrowedFd<'_>) -> io::Result<Vec<QueuedError>> {
        self.get()?.queued_errors(socket)
    }

    /// What a socket, of UDP or another one, is like beside its options.
    pub(super) fn socket_state(&self, socket: BorrowedFd<'_>, is_udp: bool) -> io::Result<SocketState> {
        self.get()?.socket_state(socket, is_udp)
    }

    /// What was set in a socket of the internet's and is told by no call.
    pub(super) fn hidden_options(&self, socket: BorrowedFd<'_>) -> io::Result<Vec<HiddenOption>> {
        self.get()?.hidden_options(socket)
    }

    /// Addresses that a packet socket wants its devices to take; `None` for one with rings.
    pub(super) fn packet_memberships(&self, socket: BorrowedFd<'_>) -> io::Result<Option<Vec<HiddenOption>>> {
        self.get()?.packet_memberships(socket)
    }

    /// The address that a socket of the internet's is connected with, or connects with.
    pub(super) fn connected_with(&self, socket: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
        self.get()?.connected_with(socket)
    }
}
