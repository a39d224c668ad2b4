//! What a socket of UDP holds beside its addresses and options.

use super::{
    datagram::{self, Datagram},
    devices::Devices,
    gathered::{Gathered, gathered},
    number_option, pending,
    queued::{self, Ends, QueuedError, queued},
    system,
};
use crate::file::{DumpContext, FileError, FoundFile, OpenContext};
use floe_sys::{
    message::drop_error,
    socket::{events, set_option, unacknowledged},
};
use nix::{
    errno::Errno,
    sys::socket::{Shutdown, shutdown},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// It; of other sockets nothing.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Held {
    /// What waits in it.
    datagrams: Vec<Datagram>,
    /// What it has put aside, to be sent with what is written next.
    gathered: Option<Gathered>,
    /// What of it was shut down: 1 for reading, 2 for writing.
    shut: u8,
    /// Errors that wait with what they are about, the first one first.
    errors: Vec<QueuedError>,
}

/// Where the error comes from that the next call tells (SO_ERROR).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// There is none.
    Nowhere,
    /// It is that of the last one of ICMP that waits: it has come and nobody has asked since.
    Last,
    /// That of the first one: an earlier one was read.
    First,
    /// It waits alone.
    Alone,
}

/// A socket: family, protocol, its own address and that of its other end.
type Socket = (i32, Ends);

impl Held {
    /// That of a socket at its own address; or why it can't be carried.
    pub(super) fn of(
        file: &FoundFile,
        ends: Ends,
        context: &DumpContext<'_>,
    ) -> Result<Result<Self, String>, FileError> {
        let (_, local, _) = ends;
        let events = events(file.as_fd(), libc::POLLIN | libc::POLLRDHUP);
        let events = events.map_err(FileError::system("poll", file.title()))?;
        let mut held = Self::default();
        held.shut = match context.memory.socket_state(file.as_fd(), true) {
            Ok(state) => {
                if state.gathers {
                    match gathered(file.as_fd(), local, &context.memory) {
                        Ok(found) => held.gathered = found,
                        Err(reason) => return Ok(Err(reason)),
                    }
                }
                if state.queued_errors {
                    let found = context.memory.queued_errors(file.as_fd());
                    let found = found.map_err(|error| error.to_string());
                    match found.and_then(|found| queued(found, ends, &file.network)) {
                        Ok(found) => held.errors = found,
                        Err(reason) => return Ok(Err(reason)),
                    }
                }
                state.shutdown & 3
            }
            // What still counts waits for more, or for its device.
            Err(error) if unacknowledged(file.as_fd()).is_ok_and(|bytes| bytes != 0) => {
                return Ok(Err(format!(
                    "a datagram that is being gathered (UDP_CORK, MSG_MORE), or on its way, is told by the kernel's memory \
                     alone, which can't be read ({error})"
                )));
            }
            // Of one that only sends no more nothing tells then.
            Err(_) if events & libc::POLLHUP != 0 => 3,
            Err(_) if events & libc::POLLRDHUP != 0 => 1,
            Err(_) => 0,
        };
        if events & libc::POLLIN == 0 {
            return Ok(Ok(held));
        }
        match datagram::waiting(file.as_fd(), &context.memory) {
            Ok(found) if !found.is_empty() && local.is_none() => Ok(Err(
                "datagrams that wait in a socket which has lost its address can't be carried".to_owned(),
            )),
            Ok(found) => {
                held.datagrams = found;
                Ok(Ok(held))
            }
            Err(reason) => Ok(Err(reason)),
        }
    }

    /// Numbers of the network devices that it names.
    pub(super) fn devices(&self) -> BTreeSet<u32> {
        let datagrams = self.datagrams.iter().map(Datagram::device);
        datagrams.chain(self.gathered.as_ref().map(Gathered::device)).collect()
    }

    /// Has it name the devices by the numbers that they have here.
    pub(super) fn renumber(&mut self, devices: &Devices) {
        self.datagrams.iter_mut().for_each(|one| one.renumber(devices));
        self.gathered.iter_mut().for_each(|one| one.renumber(devices));
    }

    /// Whether a socket, of UDP or another one, can hold that, and tell that error.
    pub(super) fn is_possible(&self, (family, ends): Socket, error: i32, is_udp: bool) -> bool {
        let (protocol, local, _) = ends;
        let is_nothing = self.datagrams.is_empty() && self.gathered.is_none() && self.errors.is_empty();
        (is_nothing || is_udp && local.is_some())
            && (!is_udp || self.can_tell(error, ends))
            && self.errors.iter().all(|one| one.is_possible((protocol, local)))
            && (self.shut == 0 || is_udp && self.shut < 4)
            && self.datagrams.iter().all(|one| one.is_possible(protocol))
            && self.gathered.iter().all(|one| one.is_possible(family))
    }

    /// Whether an error that waits can be caused again, beside all else.
    pub(super) fn can_tell(&self, error: i32, (protocol, _, remote): Ends) -> bool {
        // What is put aside takes an error away; errors of this host's own take away what is put aside.
        let is_last_own = self.errors.last().is_some_and(QueuedError::is_local);
        let is_in_turn = error == 0 || self.gathered.is_none() || !is_last_own;
        let can_be_caused = match self.source(error) {
            None => false,
            Some(Source::Alone) => remote.is_some() && pending::is_possible(error, (libc::SOCK_DGRAM, protocol)),
            Some(_) => true,
        };
        is_in_turn && can_be_caused
    }

    fn source(&self, error: i32) -> Option<Source> {
        let is = |one: Option<&QueuedError>| one.is_some_and(|one| !one.is_local() && one.error() == error);
        let mut told = self.errors.iter().filter(|one| !one.is_local());
        match told.next_back() {
            _ if error == 0 => Some(Source::Nowhere),
            None => Some(Source::Alone),
            last if is(last) => Some(Source::Last),
            _ if is(self.errors.first()) => Some(Source::First),
            _ => None,
        }
    }

    /// Puts it back into a socket, which has all options but its filter, with the error that the next call tells.
    pub(super) fn put_back(
        &self,
        id: u32,
        socket: BorrowedFd<'_>,
        (of, error): (Socket, i32),
        context: &OpenContext<'_>,
    ) -> Result<(), FileError> {
        let (family, ends) = of;
        let (protocol, local, _) = ends;
        let failed = |action| move |source: Errno| system(action, id, source.into());
        let tell = || {
            let silenced = Silenced::new(socket, family).map_err(failed("set the options of"))?;
            pending::tell_udp(id, socket, (protocol, error), context)?;
            silenced.put_back().map_err(failed("set the options of"))
        };
        datagram::put_back(id, socket, (protocol, &self.datagrams), context)?;
        let source = self.source(error);
        if source == Some(Source::Alone) && self.gathered.is_none() {
            tell()?;
        }
        let last_own = self.errors.iter().rposition(QueuedError::is_local);
        let (mut before, behind) = (self.errors.clone(), self.errors.get(last_own.map_or(0, |at| at + 1)..));
        before.truncate(last_own.map_or(0, |at| at + 1));
        // One more, which is taken at the end: the next one's error is told then.
        if source == Some(Source::First) {
            before.splice(..0, self.errors.first().cloned());
        }
        queued::put_back(id, socket, of, &before, context)?;
        if let Some(gathered) = &self.gathered {
            forget_error(socket).map_err(failed("take an error from"))?;
            let put_aside = gathered.put_aside(socket, (family, protocol), local);
            put_aside.map_err(failed("put aside what is being gathered in"))?;
            if source == Some(Source::Alone) {
                tell()?;
            }
        }
        queued::put_back(id, socket, of, behind.unwrap_or_default(), context)?;
        match source {
            Some(Source::First) => drop_error(socket).map_err(failed("take an error from"))?,
            Some(Source::Nowhere) => forget_error(socket).map_err(failed("take an error from"))?,
            _ => {}
        }
        queued::check(id, socket, &self.errors)?;
        shut_down(socket, self.shut).map_err(failed("shut down"))
    }

    /// What `floe inspect` says of it.
    pub(super) fn describe(&self) -> String {
        let waiting = match self.datagrams.len() {
            0 => String::new(),
            count => format!(", {count} datagrams wait"),
        };
        let gathered = self.gathered.as_ref().map_or("", |_| ", one is being gathered");
        let errors = match self.errors.len() {
            0 => String::new(),
            count => format!(", {count} errors wait"),
        };
        waiting + gathered + &errors
    }
}

/// Takes the error that the next call would tell.
fn forget_error(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    number_option(socket, libc::SOL_SOCKET, libc::SO_ERROR).map(drop)
}

/// A socket that keeps nothing of what errors are about. Nothing waits in it: that would be thrown away.
struct Silenced<'a> {
    socket: BorrowedFd<'a>,
    names: Vec<(i32, i32, i32)>,
}

impl<'a> Silenced<'a> {
    fn new(socket: BorrowedFd<'a>, family: i32) -> Result<Self, Errno> {
        let mut names = vec![(libc::IPPROTO_IP, libc::IP_RECVERR)];
        if family == libc::AF_INET6 {
            names.push((libc::IPPROTO_IPV6, libc::IPV6_RECVERR));
        }
        let mut silenced = Self {
            socket,
            names: Vec::new(),
        };
        for (level, name) in names {
            let value = number_option(socket, level, name)?;
            if value != 0 {
                set_option(socket, level, name, &0_i32.to_ne_bytes())?;
                silenced.names.push((level, name, value));
            }
        }
        Ok(silenced)
    }

    fn put_back(self) -> Result<(), Errno> {
        let mut names = self.names.into_iter();
        names.try_for_each(|(level, name, value)| set_option(self.socket, level, name, &value.to_ne_bytes()))
    }
}

/// Shuts down what was; without another end it is done, though it is told that there is none.
fn shut_down(socket: BorrowedFd<'_>, what: u8) -> Result<(), Errno> {
    let how = match what {
        1 => Shutdown::Read,
        2 => Shutdown::Write,
        3 => Shutdown::Both,
        _ => return Ok(()),
    };
    match shutdown(socket.as_raw_fd(), how) {
        Err(Errno::ENOTCONN) => Ok(()),
        result => result,
    }
}
