//! Clients of a sandbox: attached terminals, foreground runs, announcers of a checkpoint.

use super::{
    care::{Handed, Kept, Owed},
    console::ConsoleEnds,
};
use crate::message::{self, PAYLOAD, kind};
use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket},
};
use std::{
    collections::VecDeque,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    rc::{Rc, Weak},
};

/// Name of the socket in a sandbox's folder.
pub const SOCKET: &str = "monitor.sock";
/// Messages that may wait for a client before the workload's output waits too.
const QUEUE: usize = 64;
/// More messages than a socket holds.
const SENT: usize = 256;

struct Client {
    socket: OwnedFd,
    subscribed: bool,
    announces: bool,
    surveys: bool,
    queue: VecDeque<Owed>,
    /// Files that it hands over, until it says that they are to be kept.
    handed: Option<Handed>,
    /// It wants to know when all memory is there.
    awaits_memory: bool,
    /// It takes nothing any more; what it has sent before counts all the same.
    deaf: bool,
    gone: bool,
}

/// All clients, and the socket at which new ones call.
pub struct Clients {
    listener: OwnedFd,
    /// What is given up for a moment where there is no room for one more client.
    spare: Option<OwnedFd>,
    all: Vec<Client>,
    /// Files that floe has given into care.
    kept: Kept,
    /// Whether memory is still to come.
    loading: bool,
}

impl Clients {
    /// Listens in the sandbox's folder.
    pub fn listen(folder: &Path) -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        // The path may be longer than a socket address takes; one by way of /proc/self/fd never is.
        let directory = std::fs::File::open(folder).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
        bind(listener.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
        listen(&listener, Backlog::new(64).unwrap_or(Backlog::MAXALLOWABLE))?;
        Ok(Self {
            spare: listener.try_clone().ok(),
            listener,
            all: Vec::new(),
            kept: Kept::default(),
            loading: false,
        })
    }

    /// The listening socket.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Takes a new client.
    pub fn accept(&mut self) {
        match accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(number) => {
                let socket = floe_sys::descriptor::adopt(number);
                self.all.push(Client {
                    socket,
                    subscribed: false,
                    announces: false,
                    surveys: false,
                    awaits_memory: false,
                    queue: VecDeque::new(),
                    handed: None,
                    deaf: false,
                    gone: false,
                });
            }
            Err(Errno::EMFILE | Errno::ENFILE) => self.turn_away(),
            Err(error) => tracing::debug!(%error, "a client hung up while it was accepted"),
        }
    }

    /// Hangs up on a client for which there is no descriptor: it would call for ever.
    fn turn_away(&mut self) {
        drop(self.spare.take());
        match accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(number) => drop(floe_sys::descriptor::adopt(number)),
            Err(error) => tracing::debug!(%error, "a client can't even be turned away"),
        }
        self.spare = self.listener.try_clone().ok();
    }

    /// What to ask poll about each client; one that may send input is heard only while there is room for it, and left out
    /// where there is nothing to ask: poll tells of one that hung up in any case.
    pub fn wishes(&self, input_room: bool) -> impl Iterator<Item = (usize, BorrowedFd<'_>, PollFlags)> {
        self.all.iter().enumerate().filter_map(move |(index, client)| {
            let mut flags = PollFlags::empty();
            if self.are_heard(client, input_room) {
                flags |= PollFlags::POLLIN;
            }
            if !client.queue.is_empty() {
                flags |= PollFlags::POLLOUT;
            }
            (!flags.is_empty()).then_some((index, client.socket.as_fd(), flags))
        })
    }

    fn are_heard(&self, client: &Client, input_room: bool) -> bool {
        !client.subscribed || input_room && !self.are_surveying()
    }

    /// Whether somebody relies on it that no input moves.
    pub fn are_surveying(&self) -> bool {
        self.all
            .iter()
            .any(|client| client.surveys && !client.gone && !client.deaf)
    }

    /// Whether all clients keep up with the output.
    pub fn have_room(&self) -> bool {
        self.all.iter().all(|client| client.queue.len() < QUEUE)
    }

    /// A client can be read or written. What it orders about a hand-over is left to the caller, who answers it.
    pub fn hear(&mut self, index: usize, console: &mut ConsoleEnds) -> Option<(u8, Vec<u8>)> {
        let client = self.all.get_mut(index)?;
        client.flush();
        let client = &self.all[index];
        if !self.are_heard(client, console.has_input_room()) {
            return None;
        }
        let client = &mut self.all[index];
        let mut byte = [0];
        let peek = nix::sys::socket::MsgFlags::MSG_PEEK | nix::sys::socket::MsgFlags::MSG_DONTWAIT;
        if let Err(Errno::EAGAIN | Errno::EINTR) = nix::sys::socket::recv(client.socket.as_raw_fd(), &mut byte, peek) {
            return None;
        }
        match message::get_with_file(&client.socket) {
            Ok(Some((kind::SURVEY, ..))) => self.survey(index, console),
            Ok(Some((kind::HAND_ALL, note, _))) => {
                self.kept = Kept::default();
                client.handed = Some(Handed::begin(note));
            }
            Ok(Some((kind::HAND, note, file))) => {
                if let Some(handed) = &mut client.handed {
                    handed.take(note, file);
                }
            }
            Ok(Some((kind::KEEP, ..))) => match client.handed.take().map_or(Err(Errno::EPROTO), Handed::finish) {
                Ok((kept, room)) => {
                    self.kept = kept;
                    client.tell(kind::NOTED, (room as u32).to_le_bytes().to_vec());
                }
                Err(error) => client.tell(kind::FAILED, message::failure(error, "keep files")),
            },
            Ok(Some((kind::KEPT, ..))) => client.give(&self.kept),
            Ok(Some((kind @ (kind::HAND_OVER | kind::RELEASE | kind::DROP), payload, _))) => {
                return Some((kind, payload));
            }
            Ok(Some((kind::LOADED, ..))) => {
                client.awaits_memory = true;
                self.set_loading(self.loading);
            }
            Ok(Some((kind, payload, _))) => client.obey(kind, &payload, console),
            Ok(None) | Err(_) => client.gone = true,
        }
        None
    }

    /// Answers what a client ordered.
    pub fn answer(&mut self, index: usize, kind: u8, payload: Vec<u8>) {
        if let Some(client) = self.all.get_mut(index) {
            client.tell(kind, payload);
        }
    }

    fn survey(&mut self, index: usize, console: &mut ConsoleEnds) {
        console.drain(self);
        self.all.iter_mut().for_each(|client| client.take_sent_input(console));
        let client = &mut self.all[index];
        client.surveys = true;
        let waiting = console.waiting_input();
        let pieces = waiting
            .chunks(PAYLOAD)
            .map(|piece| (kind::WAITING, piece.to_vec(), None));
        client.queue.extend(pieces);
        client.tell(kind::SURVEYED, console.survey());
    }

    /// Whether memory is still to come; when it is not, those are told that wait for it.
    pub fn set_loading(&mut self, loading: bool) {
        self.loading = loading;
        if loading {
            return;
        }
        for client in &mut self.all {
            if std::mem::take(&mut client.awaits_memory) {
                client.tell(kind::NOTED, Vec::new());
            }
        }
    }

    /// Sends output to all that want it.
    pub fn tell(&mut self, kind: u8, bytes: &[u8]) {
        for client in self.all.iter_mut().filter(|client| client.subscribed && !client.deaf) {
            client.tell(kind, bytes.to_vec());
        }
    }

    /// Forgets those that hung up.
    pub fn forget_gone(&mut self) {
        self.all.retain(|client| !client.gone);
    }

    /// Whether somebody has announced that the end of PID 1 is a checkpoint's doing. Looks at what came in last, too.
    pub fn end_announced(&self) -> bool {
        self.all
            .iter()
            .any(|client| client.announces && !client.gone && !client.deaf)
    }

    /// The last word to all clients; waits until each has taken all that it is owed, or has hung up.
    pub fn say_last(&mut self, kind: u8, payload: &[u8]) {
        for client in &mut self.all {
            client.queue.push_back((kind, payload.to_vec(), None));
            while let Some((kind, payload, file)) = client.queue.pop_front() {
                let told = match file.as_ref().and_then(Weak::upgrade) {
                    Some(file) => message::put_file(&client.socket, kind, &payload, file.as_fd()),
                    None => message::put(&client.socket, kind, &payload),
                };
                if told.is_err() {
                    break;
                }
            }
        }
    }
}

impl Client {
    fn tell(&mut self, kind: u8, payload: Vec<u8>) {
        self.queue.push_back((kind, payload, None));
        self.flush();
    }

    /// Gives it what is kept; what is forgotten before its turn comes goes without the file.
    fn give(&mut self, kept: &Kept) {
        for (note, file) in &kept.files {
            let file = Some(Rc::downgrade(file));
            self.queue.push_back((kind::KEPT_ONE, note.clone(), file));
        }
        self.tell(kind::KEPT_ALL, kept.note.clone());
    }

    fn flush(&mut self) {
        while let Some((kind, payload, file)) = self.queue.front() {
            let told = match file.as_ref().and_then(Weak::upgrade) {
                Some(file) => message::put_file_now(&self.socket, *kind, payload, file.as_fd()),
                None => message::put_now(&self.socket, *kind, payload),
            };
            match told {
                Ok(()) => drop(self.queue.pop_front()),
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    self.deaf = true;
                    self.queue.clear();
                    return;
                }
            }
        }
    }

    /// Takes what the client has sent so far, also where there is no room for more. One that goes on sending is not
    /// followed for ever.
    fn take_sent_input(&mut self, console: &mut ConsoleEnds) {
        for _ in 0..SENT {
            match message::get_now(&self.socket) {
                Ok(Some((kind, payload))) => self.obey(kind, &payload, console),
                Ok(None) => return self.gone = true,
                Err(_) => return,
            }
        }
    }

    fn obey(&mut self, kind: u8, payload: &[u8], console: &mut ConsoleEnds) {
        match kind {
            kind::SUBSCRIBE => {
                self.subscribed = true;
                let held = console.log_bytes().to_le_bytes();
                self.tell(kind::NOTED, held.to_vec());
            }
            kind::ANNOUNCE => {
                self.announces = true;
                self.tell(kind::NOTED, Vec::new());
            }
            kind::INPUT => console.input(payload),
            kind::INPUT_END => console.end_input(),
            kind::UNREAD => {
                if let [kind] = payload {
                    console.close_output(*kind);
                }
            }
            kind::WINDOW => {
                if let [a, b, c, d] = payload {
                    console.set_size(u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
                }
            }
            _ => {}
        }
    }
}
