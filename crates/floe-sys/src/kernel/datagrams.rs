//! Packets that wait in sockets that are no streams, whole: net/ipv4/udp.c, include/linux/skbuff.h. A look by recvmsg(2)
//! tells their bytes alone, and counts those that have none once.

use super::FileMemory;
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::BorrowedFd,
};

/// What is asked for here, and not by `connections`.
pub(super) const STRUCTURES: [&str; 1] = ["udp_sock"];

/// Packets of one socket, and bytes of their headers.
const MOST_PACKETS: usize = 1 << 20;
const MOST_HEADERS: u64 = 4096;

/// A packet that nobody has received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingPacket {
    /// What comes before what a program receives: headers.
    pub header: Vec<u8>,
    /// What a program receives.
    pub content: Vec<u8>,
    /// Where it was put together from several, how long each of these but the last was.
    pub segment: u16,
    /// SO_RCVMARK.
    pub mark: u32,
    /// When it came, in nanoseconds of CLOCK_REALTIME; 0 where nobody asked.
    pub time: u64,
    /// The number of the network device by which it came; what the host sent itself has come by that of its address.
    pub device: u32,
}

/// What a socket is like beside its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketState {
    /// What was shut down: 1 for reading, 2 for writing.
    pub shutdown: u8,
    /// The error that the next call tells.
    pub error: i32,
    /// Whether more about errors waits (MSG_ERRQUEUE).
    pub queued_errors: bool,
    /// Whether what was written is gathered to be sent as one (UDP_CORK, MSG_MORE); of a stream, whether some of it is not
    /// sent, or not acknowledged.
    pub gathers: bool,
}

impl FileMemory {
    /// What a socket of the caller's is like; of UDP if `is_udp`.
    ///
    /// # Errors
    /// Those of reading.
    pub fn socket_state(&self, socket: BorrowedFd<'_>, is_udp: bool) -> io::Result<SocketState> {
        let sock = self.sock(socket)?;
        let number = |member| self.0.number("sock", sock, member);
        Ok(SocketState {
            shutdown: number("sk_shutdown")? as u8,
            error: number("sk_err")? as i32,
            queued_errors: number("sk_error_queue.qlen")? != 0,
            gathers: match is_udp {
                true => self.0.number("udp_sock", sock, "pending")? != 0,
                false => number("sk_write_queue.qlen")? != 0,
            },
        })
    }

    /// Packets that wait in a socket of the caller's, the one that is received first at first; of UDP if `is_udp`. Nobody
    /// receives meanwhile.
    ///
    /// # Errors
    /// Those of reading.
    pub fn waiting_packets(&self, socket: BorrowedFd<'_>, is_udp: bool) -> io::Result<Vec<WaitingPacket>> {
        let memory = &self.0;
        let sock = self.sock(socket)?;
        let mut heads = vec![sock + memory.types.offset("sock", "sk_receive_queue")?];
        if is_udp {
            // What was looked at already, in front of the rest.
            heads.insert(0, sock + memory.types.offset("udp_sock", "reader_queue")?);
        }
        let mut found = Vec::new();
        for head in heads {
            let mut buffer = memory.word(head)?;
            while buffer != head {
                if found.len() == MOST_PACKETS {
                    return Err(io::Error::other("the kernel's queue of packets has no end"));
                }
                found.push(self.packet(buffer)?);
                buffer = memory.member("sk_buff", buffer, "next")?;
            }
        }
        Ok(found)
    }

    /// The address that a socket of the caller's, of the internet's, is connected with, or connects with: one without a port,
    /// and one that has not answered yet, is told by no call.
    ///
    /// # Errors
    /// Those of reading.
    pub fn connected_with(&self, socket: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
        /// include/net/tcp_states.h: TCP_ESTABLISHED, TCP_SYN_SENT.
        const CONNECTED: [u8; 2] = [1, 2];
        let (memory, sock) = (&self.0, self.sock(socket)?);
        let number = |member: &str| memory.number("sock_common", sock, member);
        if !CONNECTED.contains(&(number("skc_state")? as u8)) {
            return Ok(None);
        }
        let port = u16::from_be(number("skc_dport")? as u16);
        if i32::from(number("skc_family")? as u16) == libc::AF_INET {
            let four = Ipv4Addr::from(number("skc_daddr")?.to_ne_bytes());
            return Ok(Some((four, port).into()));
        }
        let place = sock + memory.types.offset("sock_common", "skc_v6_daddr")?;
        let bytes: [u8; 16] = memory.bytes(place, 16)?.try_into().expect("16 bytes");
        Ok(Some((Ipv6Addr::from(bytes), port).into()))
    }

    pub(super) fn packet(&self, buffer: u64) -> io::Result<WaitingPacket> {
        let memory = &self.0;
        let number = |member: &str| memory.number("sk_buff", buffer, member);
        let head = memory.member("sk_buff", buffer, "head")?;
        let start = head + u64::from(number("network_header")? as u16);
        let before = memory.member("sk_buff", buffer, "data")?.checked_sub(start);
        let before = before.filter(|before| *before <= MOST_HEADERS).unwrap_or(0);
        let shared = head + u64::from(number("end")?);
        Ok(WaitingPacket {
            header: memory.bytes(start, before as usize)?,
            content: self.buffer(buffer)?,
            segment: memory.number("skb_shared_info", shared, "gso_size")? as u16,
            mark: number("mark")?,
            time: memory.member("sk_buff", buffer, "tstamp")?,
            // The first member of struct inet_skb_parm and of struct inet6_skb_parm.
            device: number("cb")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::kernel::FileMemory;
    use std::{net::UdpSocket, os::fd::AsFd};

    #[test]
    fn datagrams_are_seen_whole_and_left() {
        let memory = FileMemory::open().expect("as root");
        for place in ["127.0.0.1:0", "[::1]:0"] {
            let one = UdpSocket::bind(place).expect("bind");
            let other = UdpSocket::bind(place).expect("bind");
            let to = one.local_addr().expect("an address");
            let long = vec![7; 60_000];
            let sent = [&b"hello"[..], b"", &long, b"x"];
            for bytes in sent {
                other.send_to(bytes, to).expect("send");
            }
            for round in 0..2 {
                let found = memory.waiting_packets(one.as_fd(), true).expect("read");
                let contents: Vec<&[u8]> = found.iter().map(|packet| &packet.content[..]).collect();
                assert!(contents == sent, "{place}");
                for packet in &found {
                    let ports = &packet.header[packet.header.len() - 8..];
                    assert_eq!(
                        u16::from_be_bytes([ports[0], ports[1]]),
                        other.local_addr().expect("an address").port()
                    );
                    assert_eq!(packet.header[0] >> 4, if to.is_ipv4() { 4 } else { 6 });
                }
                // A look moves them.
                assert_eq!(one.peek_from(&mut [0; 5]).expect("look").0, 5, "{round}");
            }
        }
    }
}
