//! Connections that wait to be accepted at a unix socket, and what was sent to them: net/unix/af_unix.c, include/net/af_unix.h,
//! include/net/scm.h. Each is a buffer in the queue of the socket that listens; nobody has a descriptor of its end yet.

use super::{FileMemory, tasks};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// What is asked for here, besides sockets and buffers.
pub(super) const STRUCTURES: [&str; 6] = [
    "unix_sock",
    "unix_address",
    "unix_skb_parms",
    "scm_fp_list",
    "cred",
    "group_info",
];

/// No queue is longer: listen(2) takes no more, net.core.somaxconn is a number of four bytes, but memory ends before.
const MOST_CONNECTIONS: usize = 1 << 20;
/// Messages of one connection.
const MOST_MESSAGES: usize = 1 << 20;
/// SCM_MAX_FD, include/net/scm.h.
const MOST_FILES: u16 = 253;
/// NGROUPS_MAX, linux/limits.h.
const MOST_GROUPS: u32 = 65_536;
/// struct sockaddr_un: the family, and with the name.
const FAMILY: u64 = 2;
const LONGEST_ADDRESS: u32 = 110;

/// A connection that nobody has accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnacceptedConnection {
    /// Who connected: a socket as [`FileMemory::socket_place`] tells it.
    pub client: u64,
    /// Whether nobody has that socket any more.
    pub is_closed: bool,
    /// The client's name, as in `sun_path`; empty where it has none.
    pub name: Vec<u8>,
    /// PID, user and group of who connected; the PID in the caller's namespace, 0 where it has none there.
    pub maker: [u32; 3],
    /// The supplementary groups of that one.
    pub groups: Vec<u32>,
    /// What was sent.
    pub messages: Vec<SentMessage>,
}

/// A message, or of a stream a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentMessage {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// PID, user and group of who sent it, where the kernel noted that; the PID as that of the maker.
    pub sender: Option<[u32; 3]>,
    /// Files that come with it, as [`FileMemory::file_place`] tells them.
    pub files: Vec<u64>,
    /// Whether its last byte is urgent (MSG_OOB).
    pub urgent: bool,
}

impl FileMemory {
    /// What tells the socket behind a descriptor of the caller's from all others.
    ///
    /// # Errors
    /// Those of reading.
    pub fn socket_place(&self, socket: BorrowedFd<'_>) -> io::Result<u64> {
        let memory = &self.0;
        let socket = memory.member("file", memory.file(socket)?, "private_data")?;
        memory.member("socket", socket, "sk")
    }

    /// What tells the open file behind a descriptor of the caller's from all others.
    ///
    /// # Errors
    /// Those of reading.
    pub fn file_place(&self, file: BorrowedFd<'_>) -> io::Result<u64> {
        self.0.file(file)
    }

    /// Connections that wait at a unix socket of the caller's that listens, the one that is accepted first at first. Nobody
    /// accepts meanwhile, and those who matter send nothing.
    ///
    /// # Errors
    /// Those of reading.
    pub fn unaccepted_connections(&self, listener: BorrowedFd<'_>) -> io::Result<Vec<UnacceptedConnection>> {
        let mut found = Vec::new();
        for buffer in self.buffers(self.socket_place(listener)?, MOST_CONNECTIONS)? {
            let end = self.0.member("sk_buff", buffer, "sk")?;
            found.push(self.unaccepted(end).map_err(|error| {
                let text = format!("a connection at descriptor {}: {error}", listener.as_raw_fd());
                io::Error::new(error.kind(), text)
            })?);
        }
        Ok(found)
    }

    /// What is in the receive queue of a socket.
    fn buffers(&self, sock: u64, most: usize) -> io::Result<Vec<u64>> {
        let memory = &self.0;
        let head = sock + memory.types.offset("sock", "sk_receive_queue")?;
        let mut buffer = memory.word(head)?;
        let mut found = Vec::new();
        while buffer != head {
            if found.len() == most {
                return Err(io::Error::other("a queue of the kernel's has no end"));
            }
            found.push(buffer);
            buffer = memory.member("sk_buff", buffer, "next")?;
        }
        Ok(found)
    }

    fn unaccepted(&self, sock: u64) -> io::Result<UnacceptedConnection> {
        let memory = &self.0;
        let client = memory.member("unix_sock", sock, "peer")?;
        let credentials = memory.member("sock", sock, "sk_peer_cred")?;
        let pid = memory.member("sock", sock, "sk_peer_pid")?;
        let [uid, gid] = ["euid", "egid"].map(|member| memory.number("cred", credentials, member));
        // Kernels without CONFIG_AF_UNIX_OOB have none.
        let urgent = memory.member("unix_sock", sock, "oob_skb").unwrap_or(0);
        let buffers = self.buffers(sock, MOST_MESSAGES)?.into_iter();
        let messages = buffers.map(|buffer| self.sent(buffer, buffer == urgent));
        Ok(UnacceptedConnection {
            client,
            is_closed: memory.member("sock", client, "sk_socket")? == 0,
            name: self.name(client)?,
            maker: [tasks::id_here(memory, pid)?, uid?, gid?],
            groups: self.groups(credentials)?,
            messages: messages.collect::<io::Result<_>>()?,
        })
    }

    fn name(&self, sock: u64) -> io::Result<Vec<u8>> {
        let memory = &self.0;
        let address = memory.member("unix_sock", sock, "addr")?;
        if address == 0 {
            return Ok(Vec::new());
        }
        let length = memory.number("unix_address", address, "len")?;
        if length > LONGEST_ADDRESS {
            return Err(io::Error::other("a socket has a name that is too long"));
        }
        let place = address + memory.types.offset("unix_address", "name")? + FAMILY;
        let mut name = memory.bytes(place, (length as usize).saturating_sub(FAMILY as usize))?;
        // A path comes with the NUL at its end.
        if name.first().is_some_and(|first| *first != 0) && name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn groups(&self, credentials: u64) -> io::Result<Vec<u32>> {
        let memory = &self.0;
        let groups = memory.member("cred", credentials, "group_info")?;
        let count = memory.number("group_info", groups, "ngroups")?;
        if count > MOST_GROUPS {
            return Err(io::Error::other("a task has too many groups"));
        }
        let place = groups + memory.types.offset("group_info", "gid")?;
        let bytes = memory.bytes(place, 4 * count as usize)?;
        let four = |four: &[u8]| u32::from_ne_bytes(four.try_into().expect("chunks of 4"));
        Ok(bytes.chunks_exact(4).map(four).collect())
    }

    fn sent(&self, buffer: u64, urgent: bool) -> io::Result<SentMessage> {
        let memory = &self.0;
        let about = buffer + memory.types.offset("sk_buff", "cb")?;
        let sender = match memory.member("unix_skb_parms", about, "pid")? {
            0 => None,
            pid => Some([
                tasks::id_here(memory, pid)?,
                memory.number("unix_skb_parms", about, "uid")?,
                memory.number("unix_skb_parms", about, "gid")?,
            ]),
        };
        Ok(SentMessage {
            bytes: self.buffer(buffer)?,
            sender,
            files: self.files_with(memory.member("unix_skb_parms", about, "fp")?)?,
            urgent,
        })
    }

    /// `struct scm_fp_list`, or none.
    fn files_with(&self, list: u64) -> io::Result<Vec<u64>> {
        let memory = &self.0;
        if list == 0 {
            return Ok(Vec::new());
        }
        let count = memory.number("scm_fp_list", list, "count")? as u16;
        if count > MOST_FILES {
            return Err(io::Error::other("a message has too many files"));
        }
        let first = list + memory.types.offset("scm_fp_list", "fp")?;
        (0..u64::from(count)).map(|at| memory.word(first + 8 * at)).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::{kernel::FileMemory, socket};
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::{
        io::{IoSlice, Write},
        os::{
            fd::{AsFd, AsRawFd},
            linux::net::SocketAddrExt,
            unix::net::{SocketAddr, UnixListener, UnixStream},
        },
    };

    #[test]
    fn connections_are_seen_and_left() {
        let memory = FileMemory::open().expect("as root");
        let address = SocketAddr::from_abstract_name(format!("floe-unaccepted-{}", std::process::id()));
        let address = address.expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("bind");
        assert_eq!(memory.unaccepted_connections(listener.as_fd()).expect("read"), []);
        let connect = || UnixStream::connect_addr(&address).expect("connect");
        let (mut long, other, mut closed) = (connect(), connect(), connect());
        let bytes: Vec<u8> = (0..60_000_u32).map(|number| (number % 251) as u8).collect();
        long.write_all(&bytes).expect("send");
        closed.write_all(b"farewell").expect("send");
        drop(closed);
        let file = listener.as_raw_fd();
        let rights = [ControlMessage::ScmRights(&[file, file])];
        let flags = MsgFlags::empty();
        sendmsg::<()>(other.as_raw_fd(), &[IoSlice::new(b"here")], &rights, flags, None).expect("send");
        socket::set_option(other.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, &1_i32.to_ne_bytes())
            .expect("SO_PASSCRED");
        (&other).write_all(b"me").expect("send");
        let whole = |messages: &[super::SentMessage]| messages.iter().flat_map(|one| one.bytes.clone()).collect();
        for _ in 0..2 {
            let found = memory.unaccepted_connections(listener.as_fd()).expect("read");
            let all: [Vec<u8>; 3] = std::array::from_fn(|at| whole(&found[at].messages));
            assert!(all[0] == bytes && all[1] == b"hereme" && all[2] == b"farewell");
            let places = [&long, &other].map(|socket| memory.socket_place(socket.as_fd()).expect("read"));
            assert_eq!([found[0].client, found[1].client], places);
            assert_eq!(
                found.iter().map(|one| one.is_closed).collect::<Vec<_>>(),
                [false, false, true]
            );
            let files = &found[1].messages[0].files;
            assert_eq!(*files, [memory.file_place(listener.as_fd()).expect("read"); 2]);
            let own = [
                std::process::id(),
                nix::unistd::geteuid().as_raw(),
                nix::unistd::getegid().as_raw(),
            ];
            assert_eq!(found[1].messages[1].sender, Some(own));
            assert!(found.iter().all(|one| one.maker == own && one.name.is_empty()));
        }
    }
}
