//! How unix sockets are found, and with whom they are connected.

use super::{
    Body, State,
    listed::Listed,
    name::{self, Name, SocketFile},
};
use crate::{
    file::{
        DumpContext, FileError, FoundFile,
        socket::{
            Maker, ROOT, has_error, number_option, peer, plain_options,
            queue::{self, Manner, Message},
            refuse,
        },
    },
    ns::Others,
    refusal::{Passing, Refusals, Subject},
};
use floe_image::{codec, record::NsPid};
use floe_sys::{
    Pid,
    descriptor::pidfd_getfd,
    socket::{UnixSocket, option},
};
use nix::{
    errno::Errno,
    sys::socket::{UnixAddr, getpeername},
};
use std::{
    collections::{HashMap, HashSet},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    rc::Rc,
};

/// include/net/sock.h.
const RCV_SHUTDOWN: u8 = 1;

/// Unix sockets found so far.
#[derive(Default)]
pub(in crate::file) struct FoundUnix {
    /// Inode numbers of those that were refused.
    pub(super) refused: HashSet<u32>,
    /// All of the tree's network namespaces; asked for once.
    pub(super) listed: Option<Listed>,
    /// Those that are saved, in the order of their records.
    pub(super) found: Vec<Rc<FoundSocket>>,
    /// What waits in them.
    pub(super) queues: Vec<Vec<Message>>,
    /// Names of what is outside, with which some connect anew.
    pub(super) outside: HashMap<u32, Vec<u8>>,
}

/// One that is saved. Its record is complete when what waits in it is known.
pub(in crate::file) struct FoundSocket {
    /// The task that has it.
    pub subject: Subject,
    /// The same by its number, as in [`FoundFile`].
    pub viewer: Pid,
    /// What findings call it.
    pub title: String,
    pidfd: Rc<OwnedFd>,
    number: i32,
    pub(super) peer: Option<u32>,
    /// How many connections wait to be accepted.
    pub(super) waiting: u32,
    pub(super) body: Body,
}

impl FoundUnix {
    /// One of those that are saved.
    pub(in crate::file) fn socket(&self, index: usize) -> Option<Rc<FoundSocket>> {
        self.found.get(index).map(Rc::clone)
    }

    fn listed(&mut self, file: &FoundFile, others: &Others) -> Result<&Listed, FileError> {
        if self.listed.is_none() {
            self.listed = Some(Listed::read(file, others)?);
        }
        Ok(self.listed.as_ref().expect("just listed"))
    }
}

/// Gives a file its number in the image, `None` where it was refused.
type Number<'a> = dyn FnMut(OwnedFd, &mut DumpContext<'_>) -> Result<Option<u32>, FileError> + 'a;

impl FoundSocket {
    /// A duplicate.
    pub(super) fn fetch(&self) -> Result<OwnedFd, FileError> {
        pidfd_getfd(self.pidfd.as_fd(), self.number).map_err(FileError::system("fetch", self.title.clone()))
    }

    pub(super) fn refuse(&self, reason: &str, advice: &'static str, refusals: &mut Refusals) {
        refusals.add(Some(&self.subject), self.title.clone(), reason, advice);
    }

    /// The same of what passes when the tree runs on for a moment.
    pub(super) fn refuse_for_now(&self, reason: &str, advice: &'static str, refusals: &mut Refusals) {
        self.refuse(reason, advice, refusals);
        refusals.last_passes(Passing::OfItself);
    }

    /// Looks at what waits in it, `take` gives the files that come with it their numbers.
    pub(in crate::file) fn read_queue(
        &self,
        context: &mut DumpContext<'_>,
        take: &mut Number<'_>,
    ) -> Result<(), FileError> {
        let body = &self.body;
        let mut queue = Vec::new();
        if !matches!(body.state, State::Listening { .. }) {
            let socket = self.fetch()?;
            let manner = Manner {
                is_stream: body.is_stream(),
                ends: body.kind == libc::SOCK_SEQPACKET && body.shutdown & RCV_SHUTDOWN != 0,
                of_anybody: body.is_of_letters() && !matches!(body.state, State::Pair { .. }),
            };
            let keeper = Rc::clone(&context.keeper);
            let processes = context.processes.clone();
            let inside = |pid| processes.get(&Pid::new(pid)).copied().unwrap_or(0);
            let mut take_all = |files: Vec<OwnedFd>| {
                let mut numbers = Vec::with_capacity(files.len());
                for file in files {
                    // What was refused is told anyway.
                    numbers.extend(take(file, context)?);
                }
                Ok(numbers)
            };
            let whose = (socket.as_fd(), &*keeper, self.title.as_str());
            let mut trouble = None;
            match queue::waiting(whose, manner, &inside, &mut take_all)? {
                Ok(waiting) => queue = waiting,
                Err(reason) => trouble = Some(reason),
            }
            let strange = queue.iter().any(|message| !message.from.is_empty());
            if strange && !body.takes_letters() {
                trouble = Some("messages of others than its other end wait in this socket");
            }
            let nameless = queue::nameless(&queue).map_err(FileError::system("name senders to", self.title.clone()))?;
            for reason in trouble.into_iter().chain(nameless) {
                self.refuse(reason, "receive them, or close it", context.refusals);
            }
        }
        context.unix.queues.push(queue);
        Ok(())
    }
}

pub(super) fn dump(file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
    let body = dump_end(file, context)?;
    if body.is_none() {
        context.unix.refused.insert(file.metadata.ino() as u32);
    }
    Ok(body)
}

fn dump_end(file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
    let inode = file.metadata.ino() as u32;
    let wrap = |action| FileError::system(action, file.title());
    let listed = context.unix.listed(file, context.others)?;
    let Some(unix) = listed.socket(inode).cloned() else {
        return refuse(file, context, "no task of the tree is in its network namespace");
    };
    let waits = listed.waits(inode);
    let other = unix.peer.and_then(|peer| listed.any(peer)).cloned();
    if has_error(file.as_fd()).map_err(wrap("poll"))? {
        return refuse(
            file,
            context,
            "a socket with an error that nobody has read can't be carried yet",
        );
    }
    let maker = peer(file.as_fd(), context).map_err(wrap("read the maker of"))?;
    let state = match state((file, inode), (&unix, other.as_ref()), maker) {
        Ok(_) if waits => State::Waiting {
            maker: maker.unwrap_or(ROOT),
        },
        Ok(state) => state,
        Err(reason) => return refuse(file, context, reason),
    };
    if let State::Abandoned { to } = &state
        && !name::is_path(to)
        && context
            .unix
            .listed(file, context.others)?
            .has_name(file.network.number, to)
    {
        let reason = "it sent to a socket that is closed, and another one has that one's name now";
        return refuse(file, context, reason);
    }
    let kind = number_option(file.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE).map_err(wrap("read the kind of"))?;
    let Some(options) = plain_options(file, ((libc::AF_UNIX, kind, 0), &[libc::SOL_SOCKET]), context)? else {
        return Ok(None);
    };
    let groups = match maker {
        Some(_) => groups(file).map_err(wrap("read the maker's groups of"))?,
        None => Vec::new(),
    };
    let name = named(file, &unix, context)?;
    if let (Some(name), Some(identity)) = (name.as_ref().filter(|name| name.is_elsewhere()), unix.file)
        && name::file_outside_of_root(file.viewer, &name.bytes, identity)?.is_some()
    {
        let reason = "its path leads to it from a root directory alone that no process of the tree has (chroot)";
        return refuse(file, context, reason);
    }
    let body = Body {
        socket: inode,
        network: file.network.number,
        kind: unix.kind,
        name,
        own: SocketFile::of(&file.metadata),
        state,
        groups,
        shutdown: unix.shutdown,
        queue: Vec::new(),
        options,
    };
    let record = codec::encode(&body)?;
    context.unix.found.push(Rc::new(FoundSocket {
        subject: file.subject.clone(),
        viewer: file.viewer,
        title: file.title(),
        pidfd: Rc::clone(&file.pidfd),
        number: file.number,
        peer: unix.peer,
        waiting: if unix.listens { unix.queues.0 } else { 0 },
        body,
    }));
    Ok(Some(record))
}

/// Its name, and whether a path still stands for it.
fn named(file: &FoundFile, unix: &UnixSocket, context: &DumpContext<'_>) -> Result<Option<Name>, FileError> {
    let Some(bytes) = &unix.name else {
        return Ok(None);
    };
    let mut holder = file.viewer;
    let mut found = None;
    if let Some(identity) = unix.file {
        for viewer in viewers(file.viewer, bytes, context) {
            found = name::file_of(viewer, bytes, identity)?;
            if found.is_some() {
                holder = viewer;
                break;
            }
        }
    }
    Ok(Some(Name {
        bytes: bytes.clone(),
        holder: NsPid(context.processes.get(&holder).copied().unwrap_or(0)),
        file: found,
    }))
}

/// Who may know what a path means: who has the socket, and after that those with other root directories.
fn viewers(first: Pid, name: &[u8], context: &DumpContext<'_>) -> Vec<Pid> {
    let mut all = vec![first];
    if name.starts_with(b"/") {
        let root = |pid: &Pid| std::fs::metadata(format!("/proc/{pid}/root")).map(|found| (found.dev(), found.ino()));
        let mut roots: HashSet<_> = root(&first).into_iter().collect();
        let others = context
            .processes
            .keys()
            .filter(|pid| root(pid).is_ok_and(|root| roots.insert(root)));
        all.extend(others);
    }
    all
}

/// SO_PEERGROUPS: supplementary groups of who made, connected or bound it.
fn groups(file: &FoundFile) -> Result<Vec<u32>, Errno> {
    /// asm-generic/socket.h.
    const SO_PEERGROUPS: i32 = 59;
    let bytes = option(file.as_fd(), libc::SOL_SOCKET, SO_PEERGROUPS)?;
    let four = |four: &[u8]| u32::from_ne_bytes(four.try_into().expect("chunks of 4"));
    Ok(bytes.chunks_exact(4).map(four).collect())
}

fn state(
    (file, inode): (&FoundFile, u32),
    (unix, other): (&UnixSocket, Option<&UnixSocket>),
    maker: Option<Maker>,
) -> Result<State, &'static str> {
    let by = maker.unwrap_or(ROOT);
    if unix.listens {
        // What waits is looked at when all files are known.
        return Ok(State::Listening {
            most: unix.queues.1,
            maker: by,
            waiting: Vec::new(),
        });
    }
    let is_of_letters = unix.kind == libc::SOCK_DGRAM;
    let Some(peer) = unix.peer else {
        // One that was never connected tells of no maker.
        return match (maker, is_of_letters.then(|| abandoned_by(file)).flatten()) {
            (Some(maker), _) => Ok(State::Widowed { maker }),
            (None, None) => Ok(State::Single),
            (None, Some(to)) => Ok(State::Abandoned { to }),
        };
    };
    let are_mutual = other.is_some_and(|other| other.peer == Some(inode));
    match other.and_then(|other| other.name.clone()) {
        _ if !is_of_letters || are_mutual && maker.is_some() => Ok(State::Pair { other: peer, maker: by }),
        Some(to) => Ok(State::Sending { other: peer, to }),
        None => Err("a socket that sends to one without a name can't be carried yet"),
    }
}

/// The name of the closed socket that a datagram socket sent to.
fn abandoned_by(file: &FoundFile) -> Option<Vec<u8>> {
    let peer: UnixAddr = getpeername(file.as_fd().as_raw_fd()).ok()?;
    if let Some(name) = peer.as_abstract() {
        return Some([&[0], name].concat());
    }
    let path = peer.path()?;
    Some(path.as_os_str().as_encoded_bytes().to_vec())
}
