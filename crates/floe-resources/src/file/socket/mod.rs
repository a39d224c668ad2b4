//! Sockets: of the unix family and of the internet's, raw ones, packet and netlink sockets.

mod address;
mod datagram;
mod devices;
mod gathered;
mod inet;
mod keeper;
mod options;
mod pending;
mod queue;
mod queued;
mod raw;
mod supply;
mod taken;
mod tcp;
mod tcp_state;
mod udp;
mod unix;
mod unknown;
mod visit;
mod way;

pub(super) use inet::MadeInet;
pub(super) use keeper::Keeper;
pub(super) use options::UsualOptions;
pub(super) use supply::Supply;
pub(super) use tcp::{FoundConnections, MadeConnections, MadeOutside, resolve as resolve_tcp};
pub(super) use unix::{FoundUnix, Known, MadeUnix, outside_peer, resolve as resolve_unix, shown};
pub(super) use unknown::of_family;

pub use devices::lacking_devices;
pub use inet::Inet;
pub use raw::Raw;
pub use taken::taken_addresses;
pub(crate) use tcp::is_lasting_hold;
pub use tcp::{Ending, Held, Newcomers, OutsideEnds, TcpConnection, TcpMode};
pub use unix::{BoundNames, Unix, Unsent, check as check_sockets, deliver, looked_up_by};

use super::{DumpContext, FileError, FoundFile, Holders, OpenContext, has_events};
use crate::ns::{NetworkSpace, Others};
use floe_image::record::NsPid;
use floe_sys::{
    Pid,
    descriptor::{pidfd_getfd, pidfd_open},
    namespace::Kind,
    socket::option,
    tun,
};
use floe_tracee::{Batch, Puppet};
use nix::{
    errno::Errno,
    sys::stat::fstat,
    unistd::{getegid, geteuid},
};
use options::{Filter, SocketOption};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};
use supply::SocketKind;
use visit::Makers;

/// What a finding about a socket advises.
const ADVICE: &str = "close it, or run the program without it";

/// Who made, connected or bound a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Maker {
    /// 0 where it has ended, or is outside of the tree.
    pid: NsPid,
    uid: u32,
    gid: u32,
}

/// The family of a socket, AF_*; `None` for what is no socket, or can't be asked.
fn family(file: &FoundFile) -> Option<i32> {
    if file.file_type() != libc::S_IFSOCK {
        return None;
    }
    number_option(file.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN).ok()
}

/// The network namespace of a socket or a file of tun; none of what has none, or does not tell. Or why it can't be carried.
pub(super) fn network_of(
    file: &FoundFile,
    others: &Others,
) -> Result<Result<Option<NetworkSpace>, &'static str>, FileError> {
    let is_tun = tun::is_it(file.file_type(), file.metadata.rdev());
    if file.file_type() != libc::S_IFSOCK && !is_tun {
        return Ok(Ok(None));
    }
    let namespace = match tun::namespace(file.as_fd()) {
        Ok(namespace) => namespace,
        // Of a network that is not floe's to administer: the host's, for an ordinary user; or no socket any more.
        Err(Errno::EPERM | Errno::ENOTTY | Errno::EBADF) => return Ok(Ok(None)),
        Err(error) => return Err(FileError::system("find the network of", file.title())(error)),
    };
    let found = fstat(namespace.as_fd()).map_err(FileError::system("stat the network of", file.title()))?;
    let known = others.number(Kind::Network, found.st_ino);
    let space = known.and_then(|number| others.networks().find(|space| space.number == number));
    Ok(space
        .map(Some)
        .ok_or("of a network namespace that no task of the tree is in"))
}

fn number_option(socket: BorrowedFd<'_>, level: i32, name: i32) -> Result<i32, Errno> {
    let bytes = option(socket, level, name)?;
    let four: [u8; 4] = bytes.as_slice().try_into().map_err(|_| Errno::EPROTO)?;
    Ok(i32::from_ne_bytes(four))
}

/// Whether an error waits in it that nobody has read. getsockopt(SO_ERROR) would take it away.
fn has_error(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    has_events(socket, libc::POLLERR)
}

/// Options that are not as in a new socket of a kind, which has them on these levels, where none of them is refused.
fn plain_options(
    file: &FoundFile,
    (kind, levels): (SocketKind, &[i32]),
    context: &mut DumpContext<'_>,
) -> Result<Option<Vec<SocketOption>>, FileError> {
    let wrap = |action| FileError::system(action, file.title());
    let usual = context.usual.of(kind, levels).map_err(wrap("make a socket like"))?;
    let (mut options, others) = options::differing(file.as_fd(), &usual).map_err(wrap("read the options of"))?;
    if !others.is_empty() {
        return refuse(file, context, &options::refusal(&others));
    }
    match options::filter(file.as_fd()).map_err(wrap("read the filter of"))? {
        Filter::None => {}
        Filter::Classic(filter) => options.push(filter),
        Filter::Extended => return refuse(file, context, options::EXTENDED),
    }
    Ok(Some(options))
}

fn refuse<T>(file: &FoundFile, context: &mut DumpContext<'_>, reason: &str) -> Result<Option<T>, FileError> {
    context.refusals.add(Some(&file.subject), file.title(), reason, ADVICE);
    Ok(None)
}

impl<'a> OpenContext<'a> {
    fn makers(&self) -> Makers<'a> {
        Makers {
            puppets: self.puppets,
            channel: self.channel,
            known: self.known,
        }
    }
}

impl<'a> Holders<'a> {
    fn makers(&self) -> Makers<'a> {
        Makers {
            puppets: self.puppets,
            channel: self.channel,
            known: self.known,
        }
    }
}

impl Maker {
    /// A process, as root.
    fn of(pid: i32) -> Self {
        Self {
            pid: NsPid(pid),
            ..ROOT
        }
    }

    /// The process that made it, or where that has ended any.
    fn puppet<'a>(self, id: u32, context: &OpenContext<'a>) -> Result<&'a Puppet, FileError> {
        self.among(id, context.puppets)
    }

    fn among(self, id: u32, puppets: &BTreeMap<i32, Puppet>) -> Result<&Puppet, FileError> {
        let any = || puppets.values().next();
        let found = puppets.get(&self.pid.0).or_else(any);
        found.ok_or_else(|| FileError::Unknown {
            id,
            what: "there is no task to make its socket".to_owned(),
        })
    }

    /// Effective group and user, which sockets tell of; the user last, or first where it is root again. Where floe is not root,
    /// there is none in its user namespace (`--map-user`), and puppets are who floe is.
    fn become_in(self, batch: &mut Batch) {
        const KEEP: u64 = u32::MAX as u64;
        let own = (geteuid().as_raw(), getegid().as_raw());
        let is_lacking = self.uid == 0 && own.0 != 0;
        let (uid, gid) = if is_lacking { own } else { (self.uid, self.gid) };
        let user = ("take the maker's user", libc::SYS_setresuid, u64::from(uid));
        let group = ("take the maker's group", libc::SYS_setresgid, u64::from(gid));
        let calls = if uid == 0 { [user, group] } else { [group, user] };
        for (what, number, id) in calls {
            batch.call(what, number, &[KEEP, id, KEEP]);
        }
        // Files are root's to open all the while: which groups let the maker in is not known here. It answers what was before.
        batch.attempt("keep access to files", libc::SYS_setfsuid, &[0]);
    }
}

/// The effective user and group that puppets have.
const ROOT: Maker = Maker {
    pid: NsPid(0),
    uid: 0,
    gid: 0,
};

/// Takes descriptors out of a task, which has them no longer then.
fn fetch(id: u32, puppet: &Puppet, numbers: &[i32]) -> Result<Vec<OwnedFd>, FileError> {
    let wrap = |action| FileError::system(action, format!("open file {id}"));
    let pidfd = pidfd_open(puppet.tid()).map_err(wrap("open a pidfd to fetch"))?;
    let fetched = numbers.iter().map(|number| pidfd_getfd(pidfd.as_fd(), *number));
    let fetched = fetched.collect::<Result<_, _>>().map_err(wrap("fetch"))?;
    let mut batch = puppet.batch();
    for number in numbers {
        batch.call("close a socket", libc::SYS_close, &[*number as u64]);
    }
    puppet.run(&mut batch)?;
    Ok(fetched)
}

fn duplicate(id: u32, socket: &OwnedFd) -> Result<OwnedFd, FileError> {
    socket.try_clone().map_err(|source| system("duplicate", id, source))
}

fn system(action: &'static str, id: u32, source: io::Error) -> FileError {
    FileError::System {
        action,
        object: format!("open file {id}"),
        source,
    }
}

/// The process that made a socket, as SO_PEERCRED tells; `None` where it tells of nobody.
fn peer(socket: BorrowedFd<'_>, context: &DumpContext<'_>) -> Result<Option<Maker>, Errno> {
    let [pid, uid, gid] = credentials(socket)?;
    if (pid, uid, gid) == (0, u32::MAX, u32::MAX) {
        return Ok(None);
    }
    let pid = context.processes.get(&Pid::new(pid as i32)).copied().unwrap_or(0);
    Ok(Some(Maker {
        pid: NsPid(pid),
        uid,
        gid,
    }))
}

/// struct ucred: PID in floe's namespace, user, group.
fn credentials(socket: BorrowedFd<'_>) -> Result<[u32; 3], Errno> {
    let bytes = option(socket, libc::SOL_SOCKET, libc::SO_PEERCRED)?;
    let word = |at: usize| {
        let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
        four.map(u32::from_ne_bytes).ok_or(Errno::EPROTO)
    };
    Ok([word(0)?, word(4)?, word(8)?])
}
