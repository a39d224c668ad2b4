//! Completes the records of unix sockets: what waits in them, and which connections wait to be accepted. Nobody has a
//! descriptor of the other ends of these, so what was sent there is read from the kernel's memory.

use super::{
    NAME, State,
    dump::{FoundSocket, FoundUnix},
    unaccepted::Unaccepted,
};
use crate::{
    file::{
        FileError, comm,
        memory::Memory,
        socket::{Maker, queue::Message},
    },
    refusal::Refusals,
};
use floe_image::{
    codec,
    record::{NsPid, OpenFileRecord},
};
use floe_sys::{
    Pid,
    descriptor::{pidfd_getfd, pidfd_of_task},
    kernel::{SentMessage, UnacceptedConnection},
};
use std::{cell::OnceCell, collections::HashMap, io, os::fd::AsFd, rc::Rc};

/// What is known of the tree when all its files are.
pub(in crate::file) struct Known<'a> {
    memory: &'a Memory,
    processes: &'a HashMap<Pid, i32>,
    /// A descriptor of each open file, and its number in the image.
    holders: &'a [(Pid, i32, Option<u32>)],
    places: OnceCell<HashMap<u64, Option<u32>>>,
}

impl<'a> Known<'a> {
    /// Looks at nothing yet.
    pub(in crate::file) fn new(
        memory: &'a Memory,
        processes: &'a HashMap<Pid, i32>,
        holders: &'a [(Pid, i32, Option<u32>)],
    ) -> Self {
        Self {
            memory,
            processes,
            holders,
            places: OnceCell::new(),
        }
    }

    fn maker(&self, [pid, uid, gid]: [u32; 3]) -> Maker {
        let pid = self.processes.get(&Pid::new(pid as i32)).copied().unwrap_or(0);
        Maker {
            pid: NsPid(pid),
            uid,
            gid,
        }
    }

    /// All open files by where the kernel has them, with their numbers in the image, `None` where they are refused.
    fn places(&self) -> Result<&HashMap<u64, Option<u32>>, FileError> {
        if let Some(known) = self.places.get() {
            return Ok(known);
        }
        let mut found = HashMap::with_capacity(self.holders.len());
        for (pid, number, file) in self.holders {
            let wrap = || FileError::system("look at", format!("/proc/{pid}/fd/{number}"));
            let pidfd = pidfd_of_task(*pid).map_err(wrap())?;
            let duplicate = pidfd_getfd(pidfd.as_fd(), *number).map_err(wrap())?;
            let place = self.memory.file_place(duplicate.as_fd());
            found.insert(place.map_err(unreadable("a file of the tree"))?, *file);
        }
        Ok(self.places.get_or_init(|| found))
    }

    /// A message of a connection that waits; `None` where files come with it that no task has.
    fn message(&self, sent: &SentMessage) -> Result<Option<Message>, FileError> {
        let mut files = Vec::with_capacity(sent.files.len());
        for place in &sent.files {
            match self.places()?.get(place) {
                Some(file) => files.extend(*file),
                None => return Ok(None),
            }
        }
        let sender = sent.sender.map(|sender| self.maker(sender));
        Ok(Some(Message::new(sent.bytes.clone(), sender, files, sent.urgent)))
    }
}

fn unreadable(object: &str) -> impl FnOnce(io::Error) -> FileError {
    let object = object.to_owned();
    move |source| FileError::System {
        action: "read the kernel's memory of",
        object,
        source,
    }
}

/// Completes the records of unix sockets, in the order in which they were found.
///
/// # Errors
/// [`FileError`].
pub(in crate::file) fn resolve(
    all: &mut FoundUnix,
    known: &Known<'_>,
    (records, refusals): (&mut [OpenFileRecord], &mut Refusals),
) -> Result<(), FileError> {
    let sockets = records.iter_mut().filter(|record| record.kind == NAME);
    let sockets: Vec<_> = sockets.zip(&all.found).collect();
    let mut clients = clients_of(&sockets, known, refusals)?;
    let mut bodies = Vec::with_capacity(sockets.len());
    for ((_, one), queue) in sockets.iter().zip(std::mem::take(&mut all.queues)) {
        let mut body = one.body.clone();
        body.queue = queue;
        if let Some(to) = all.outside.remove(&body.socket) {
            body.state = State::Outside { to };
        }
        if let (State::Listening { waiting, .. }, 1..) = (&mut body.state, one.waiting) {
            match known.memory.unaccepted_connections(one.fetch()?.as_fd()) {
                Ok(found) => *waiting = all_of(one, found, (known, &mut clients), refusals)?,
                Err(error) => one.refuse_for_now(&untold(&error), "try again", refusals),
            }
        }
        bodies.push(codec::encode(&body)?);
    }
    for one in clients.values().map(|(_, one)| one) {
        let reason = "it waits to be accepted by a socket that no task of the tree has, or that can't be carried";
        one.refuse_for_now(reason, "close it, or try again when it is accepted", refusals);
    }
    for ((record, _), body) in sockets.into_iter().zip(bodies) {
        record.body = body;
    }
    Ok(())
}

fn untold(error: &io::Error) -> String {
    format!("connections wait to be accepted, which only the kernel's memory tells of: {error}")
}

/// Ends of the tree's whose connections wait to be accepted, by where the kernel has them, with the numbers of their files.
type Clients<'a> = HashMap<u64, (u32, &'a FoundSocket)>;

fn clients_of<'a>(
    sockets: &[(&mut OpenFileRecord, &'a Rc<FoundSocket>)],
    known: &Known<'_>,
    refusals: &mut Refusals,
) -> Result<Clients<'a>, FileError> {
    let mut clients = HashMap::new();
    for (record, one) in sockets {
        if !matches!(one.body.state, State::Waiting { .. }) {
            continue;
        }
        match known.memory.socket_place(one.fetch()?.as_fd()) {
            Ok(place) => drop(clients.insert(place, (record.id, &***one))),
            Err(error) => one.refuse_for_now(&untold(&error), "try again", refusals),
        }
    }
    Ok(clients)
}

/// What waits at a socket that listens. The clients that are found are taken out of the others.
fn all_of(
    listener: &FoundSocket,
    found: Vec<UnacceptedConnection>,
    (known, clients): (&Known<'_>, &mut Clients<'_>),
    refusals: &mut Refusals,
) -> Result<Vec<Unaccepted>, FileError> {
    let mut all = Vec::with_capacity(found.len());
    for one in found {
        let client = clients.remove(&one.client).map(|(file, _)| file);
        if client.is_none() && !one.is_closed {
            let pid = Pid::new(one.maker[0] as i32);
            let who = comm(pid);
            let reason = format!("a connection of {who} ({pid}), outside of the tree, waits to be accepted");
            listener.refuse_for_now(&reason, "try again", refusals);
            continue;
        }
        let messages = one.messages.iter().map(|message| known.message(message));
        let Some(queue) = messages.collect::<Result<Option<Vec<_>>, _>>()? else {
            let reason = "a file is on its way through a connection that waits to be accepted, and no task has it";
            listener.refuse_for_now(reason, "accept the connection, or try again", refusals);
            continue;
        };
        all.push(Unaccepted {
            name: if client.is_none() { one.name } else { Vec::new() },
            client,
            maker: known.maker(one.maker),
            groups: one.groups,
            queue,
        });
    }
    Ok(all)
}
