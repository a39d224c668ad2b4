//! TCP connections that wait to be accepted, and what was sent to them: net/ipv4/inet_connection_sock.c, tcp_input.c,
//! include/linux/skbuff.h. Nobody has a descriptor of them yet, so no call tells what they hold.

use super::{FileMemory, UrgentMark};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
};

/// What is asked for here.
pub(super) const STRUCTURES: [&str; 12] = [
    "socket",
    "sock",
    "sock_common",
    "inet_sock",
    "inet_connection_sock",
    "request_sock_queue",
    "request_sock",
    "tcp_sock",
    "sk_buff",
    "tcp_skb_cb",
    "skb_shared_info",
    "page",
];

/// No queue is longer: listen(2) takes no more, net.core.somaxconn is a number of four bytes, but memory ends before.
const MOST_CONNECTIONS: usize = 1 << 20;
/// How often one is looked at, where it changes meanwhile.
const LOOKS: usize = 5;
/// Buffers of one connection, and bytes in them.
const MOST_BUFFERS: usize = 1 << 20;
const MOST_BYTES: usize = 1 << 30;
/// MAX_SKB_FRAGS of the largest configuration, and bytes of skb_frag_t: page, length, offset.
const MOST_PARTS: u8 = 45;
const PART: u64 = 16;
/// include/net/tcp_states.h.
const TCP_CLOSE_WAIT: u8 = 8;

/// A connection that nobody has accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingConnection {
    /// Where it was connected to.
    pub local: SocketAddr,
    /// Who connected.
    pub remote: SocketAddr,
    /// What came from there.
    pub queue: Vec<u8>,
    /// The urgent byte that it was told of.
    pub mark: Option<UrgentMark>,
    /// Whether a filter (SO_ATTACH_FILTER) looks at what comes.
    pub filtered: bool,
    /// Sequence number of what comes next.
    pub next: u32,
    /// Whether the other end has said that it sends no more.
    pub got_end: bool,
}

impl FileMemory {
    /// Connections that wait at a TCP socket of the caller's that listens, the one that is accepted first at first. Nobody
    /// accepts or sends meanwhile.
    ///
    /// # Errors
    /// Those of reading.
    pub fn waiting_connections(&self, listener: BorrowedFd<'_>) -> io::Result<Vec<WaitingConnection>> {
        let memory = &self.0;
        let sock = self.sock(listener)?;
        let queue = sock + memory.types.offset("inet_connection_sock", "icsk_accept_queue")?;
        let mut request = memory.member("request_sock_queue", queue, "rskq_accept_head")?;
        let mut found = Vec::new();
        while request != 0 {
            if found.len() == MOST_CONNECTIONS {
                return Err(io::Error::other("the kernel's queue of connections has no end"));
            }
            let one = memory.member("request_sock", request, "sk")?;
            found.push(self.connection(one).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("a connection at descriptor {}: {error}", listener.as_raw_fd()),
                )
            })?);
            request = memory.member("request_sock", request, "dl_next")?;
        }
        Ok(found)
    }

    /// The `struct sock` of a socket of the caller's.
    pub(super) fn sock(&self, socket: BorrowedFd<'_>) -> io::Result<u64> {
        let memory = &self.0;
        let socket = memory.member("file", memory.file(socket)?, "private_data")?;
        memory.member("socket", socket, "sk")
    }

    /// Nobody sends, but what was sent and had no room is tried again by the kernel, which may move what is there: then it is
    /// looked at once more.
    fn connection(&self, sock: u64) -> io::Result<WaitingConnection> {
        let mut found = self.look_at(sock);
        for _ in 1..LOOKS {
            if found.is_ok() {
                break;
            }
            found = self.look_at(sock);
        }
        found
    }

    fn look_at(&self, sock: u64) -> io::Result<WaitingConnection> {
        let memory = &self.0;
        let number = |member: &str| memory.number("sock_common", sock, member);
        let family = number("skc_family")? as u16;
        let address = |four: &str, six: &str| -> io::Result<IpAddr> {
            if i32::from(family) == libc::AF_INET {
                return Ok(Ipv4Addr::from(number(four)?.to_ne_bytes()).into());
            }
            let place = sock + memory.types.offset("sock_common", six)?;
            let bytes: [u8; 16] = memory.bytes(place, 16)?.try_into().expect("16 bytes");
            Ok(Ipv6Addr::from(bytes).into())
        };
        let local = address("skc_rcv_saddr", "skc_v6_rcv_saddr")?;
        let remote = address("skc_daddr", "skc_v6_daddr")?;
        let remote_port = u16::from_be(number("skc_dport")? as u16);
        let next = memory.number("tcp_sock", sock, "rcv_nxt")?;
        let got_end = number("skc_state")? as u8 == TCP_CLOSE_WAIT;
        let first = memory.number("tcp_sock", sock, "copied_seq")?;
        let behind = next.wrapping_sub(got_end.into());
        Ok(WaitingConnection {
            local: (local, number("skc_num")? as u16).into(),
            remote: (remote, remote_port).into(),
            queue: self.received(sock, first, behind)?,
            mark: self.mark(sock)?,
            filtered: memory.member("sock", sock, "sk_filter")? != 0,
            next,
            got_end,
        })
    }

    /// What is in a receive queue between two sequence numbers.
    pub(super) fn received(&self, sock: u64, first: u32, behind: u32) -> io::Result<Vec<u8>> {
        let memory = &self.0;
        let length = behind.wrapping_sub(first) as usize;
        if length > MOST_BYTES {
            return Err(io::Error::other("its receive queue is too long"));
        }
        let head = sock + memory.types.offset("sock", "sk_receive_queue")?;
        let control = memory.types.offset("sk_buff", "cb")?;
        let mut bytes = Vec::new();
        let mut buffer = memory.word(head)?;
        for _ in 0..MOST_BUFFERS {
            if buffer == head || bytes.len() >= length {
                break;
            }
            let sequence = memory.number("tcp_skb_cb", buffer + control, "seq")?;
            let content = self.buffer(buffer)?;
            // It may begin with what is there already.
            let from = first.wrapping_add(bytes.len() as u32).wrapping_sub(sequence) as usize;
            bytes.extend(content.get(from..).unwrap_or_default());
            buffer = memory.member("sk_buff", buffer, "next")?;
        }
        // More may have come since the numbers were read.
        bytes.truncate(length);
        if bytes.len() == length {
            Ok(bytes)
        } else {
            Err(io::Error::other(format!("{} of {length} bytes are there", bytes.len())))
        }
    }

    /// The bytes of a buffer (struct sk_buff): those beside it, those in parts of pages, and those of buffers behind it.
    pub(super) fn buffer(&self, buffer: u64) -> io::Result<Vec<u8>> {
        let memory = &self.0;
        let number = |member: &str| memory.number("sk_buff", buffer, member);
        let (length, elsewhere) = (number("len")? as usize, number("data_len")? as usize);
        let beside = length.checked_sub(elsewhere).filter(|_| length <= MOST_BYTES);
        let beside = beside.ok_or_else(|| io::Error::other("a buffer of the kernel's has no length"))?;
        let mut bytes = memory.bytes(memory.member("sk_buff", buffer, "data")?, beside)?;
        if elsewhere == 0 {
            return Ok(bytes);
        }
        // On machines of 64 bits sk_buff_data_t is an offset.
        let shared = memory.member("sk_buff", buffer, "head")? + u64::from(number("end")?);
        let parts = memory.number("skb_shared_info", shared, "nr_frags")? as u8;
        let first = shared + memory.types.offset("skb_shared_info", "frags")?;
        for part in (0..u64::from(parts.min(MOST_PARTS))).map(|part| first + PART * part) {
            let (page, place) = (memory.word(part)?, memory.word(part + 8)?);
            let (length, offset) = (place as u32 as usize, place >> 32);
            if bytes.len() + length > MOST_BYTES {
                return Err(io::Error::other("a buffer of the kernel's has no end"));
            }
            bytes.extend(memory.bytes(self.address(page)? + offset, length)?);
        }
        let mut next = memory.member("skb_shared_info", shared, "frag_list")?;
        while next != 0 && bytes.len() < length {
            bytes.extend(self.buffer(next)?);
            next = memory.member("sk_buff", next, "next")?;
        }
        if bytes.len() == length {
            Ok(bytes)
        } else {
            Err(io::Error::other("a buffer of the kernel's has parts of another kind"))
        }
    }

    /// Where the kernel sees the memory of a `struct page`, Documentation/arch/x86/x86_64/mm.rst.
    fn address(&self, page: u64) -> io::Result<u64> {
        let memory = &self.0;
        let (pages, all) = memory.direct_map()?;
        let number = page
            .checked_sub(pages)
            .map(|bytes| bytes / memory.types.size("page").unwrap_or(64));
        // The lowest bit tells memory of a device.
        match number.filter(|number| page & 1 == 0 && *number < 1 << 40) {
            Some(number) => Ok(all + number * 4096),
            None => Err(io::Error::other("a buffer of the kernel's is no memory of this host")),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kernel::FileMemory;
    use std::{
        io::Write,
        net::{Shutdown, TcpListener, TcpStream},
        os::fd::AsFd,
    };

    #[test]
    fn connections_are_seen_and_left() {
        let memory = FileMemory::open().expect("as root");
        for place in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(place).expect("bind");
            let address = listener.local_addr().expect("an address");
            assert_eq!(memory.waiting_connections(listener.as_fd()).expect("read"), []);
            let long: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
            let sent = [&b"hello"[..], b"", &long[..40_000]];
            let clients: Vec<TcpStream> = sent
                .iter()
                .map(|bytes| {
                    let mut client = TcpStream::connect(("localhost", address.port()))
                        .or_else(|_| TcpStream::connect(address))
                        .expect("connect");
                    for part in bytes.chunks(7000) {
                        client.write_all(part).expect("send");
                    }
                    client
                })
                .collect();
            clients[1].shutdown(Shutdown::Write).expect("shut down");
            for _ in 0..2 {
                let found = memory.waiting_connections(listener.as_fd()).expect("read");
                let queues: Vec<&[u8]> = found.iter().map(|one| &one.queue[..]).collect();
                assert!(queues == sent, "{place}");
                let ends: Vec<bool> = found.iter().map(|one| one.got_end).collect();
                assert_eq!(ends, [false, true, false]);
                for (one, client) in found.iter().zip(&clients) {
                    let known = client.local_addr().expect("an address");
                    assert_eq!(
                        (one.remote.ip().to_canonical(), one.remote.port()),
                        (known.ip().to_canonical(), known.port())
                    );
                    assert_eq!(
                        one.local.ip().to_canonical(),
                        client.peer_addr().expect("an address").ip().to_canonical()
                    );
                    assert_eq!(one.local.port(), address.port());
                }
            }
            let _ = listener.accept().expect("it is still there");
        }
    }
}
