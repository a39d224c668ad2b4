//! Urgent data of TCP connections (MSG_OOB of tcp(7)): net/ipv4/tcp_input.c, tcp_output.c, include/net/tcp.h. A connection
//! knows of one urgent byte that comes, the last one, and of one that is sent. Calls tell of the first only while it waits
//! or is the next to be read, and of the second nothing.

use super::FileMemory;
use std::{io, os::fd::BorrowedFd};

/// How often a connection is looked at, where it changes meanwhile.
const LOOKS: usize = 5;
/// include/net/tcp.h: the byte is there; it is not yet; it was read by MSG_OOB.
const TCP_URG_VALID: u16 = 0x100;
const TCP_URG_NOTYET: u16 = 0x200;
const TCP_URG_READ: u16 = 0x400;
/// include/net/tcp_states.h: TCP_CLOSE, and those in which the other end has said its last.
const TCP_CLOSE: u8 = 7;
const ENDED: [u8; 3] = [8, 9, 11];

/// The urgent byte that a connection has been told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UrgentMark {
    /// How many bytes are to be read before it.
    pub place: u32,
    /// Where it is.
    pub byte: UrgentByte,
}

/// Where an urgent byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UrgentByte {
    /// It has not come yet.
    Coming,
    /// It waits to be read.
    Waiting,
    /// It was read by MSG_OOB, and what comes before it was not.
    Read,
}

/// What waits to be read in a connection that has been told of an urgent byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedQueue {
    /// All bytes, among them the urgent one if it has come, also where it was read already.
    pub bytes: Vec<u8>,
    /// The urgent one.
    pub mark: UrgentMark,
}

impl FileMemory {
    /// What waits in a TCP socket of the caller's, if it has been told of an urgent byte that is not behind it.
    ///
    /// # Errors
    /// Those of reading.
    pub fn marked_queue(&self, socket: BorrowedFd<'_>) -> io::Result<Option<MarkedQueue>> {
        let sock = self.sock(socket)?;
        let mut found = self.look_for_mark(sock);
        for _ in 1..LOOKS {
            if found.is_ok() {
                break;
            }
            found = self.look_for_mark(sock);
        }
        found
    }

    fn look_for_mark(&self, sock: u64) -> io::Result<Option<MarkedQueue>> {
        let Some(mark) = self.mark(sock)? else {
            return Ok(None);
        };
        let number = |member: &str| self.0.number("tcp_sock", sock, member);
        let (first, next) = (number("copied_seq")?, number("rcv_nxt")?);
        let state = self.0.number("sock_common", sock, "skc_state")? as u8;
        let bytes = match self.received(sock, first, next.wrapping_sub(ENDED.contains(&state).into())) {
            // Of one whose connection has ended the state does not tell whether the other end had said its last.
            Err(_) if state == TCP_CLOSE => self.received(sock, first, next.wrapping_sub(1))?,
            bytes => bytes?,
        };
        if self.mark(sock)? != Some(mark) {
            return Err(io::Error::other("urgent data comes meanwhile"));
        }
        Ok(Some(MarkedQueue { bytes, mark }))
    }

    /// The urgent byte that a connection has been told of, and that is not behind what is read next.
    pub(super) fn mark(&self, sock: u64) -> io::Result<Option<UrgentMark>> {
        let number = |member: &str| self.0.number("tcp_sock", sock, member);
        let byte = match number("urg_data")? as u16 {
            data if data & TCP_URG_VALID != 0 => UrgentByte::Waiting,
            TCP_URG_NOTYET => UrgentByte::Coming,
            TCP_URG_READ => UrgentByte::Read,
            _ => return Ok(None),
        };
        let place = number("urg_seq")?.wrapping_sub(number("copied_seq")?);
        Ok((place as i32 >= 0).then_some(UrgentMark { place, byte }))
    }

    /// The sequence number behind the urgent byte that a TCP socket of the caller's has sent, or is to send, and that the other
    /// end has not acknowledged.
    ///
    /// # Errors
    /// Those of reading.
    pub fn urgent_sent(&self, socket: BorrowedFd<'_>) -> io::Result<Option<u32>> {
        let sock = self.sock(socket)?;
        let number = |member: &str| self.0.number("tcp_sock", sock, member);
        let (behind, first) = (number("snd_up")?, number("snd_una")?);
        Ok((behind.wrapping_sub(first) as i32 > 0).then_some(behind))
    }
}

#[cfg(test)]
mod tests {
    use super::{MarkedQueue, UrgentByte, UrgentMark};
    use crate::kernel::FileMemory;
    use nix::sys::socket::{MsgFlags, recv, send};
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        os::fd::{AsFd, AsRawFd},
    };

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
        (client, listener.accept().expect("accept").0)
    }

    fn send_urgent(socket: &TcpStream) {
        assert_eq!(send(socket.as_raw_fd(), b"!", MsgFlags::MSG_OOB), Ok(1));
    }

    #[test]
    fn marks_are_told_until_they_are_passed() {
        let memory = FileMemory::open().expect("as root");
        let (mut client, mut server) = connection();
        let look = |server: &TcpStream| memory.marked_queue(server.as_fd()).expect("read");
        let found = |bytes: &[u8], place, byte| {
            Some(MarkedQueue {
                bytes: bytes.to_vec(),
                mark: UrgentMark { place, byte },
            })
        };
        assert_eq!(look(&server), None);
        client.write_all(b"before").expect("write");
        send_urgent(&client);
        client.write_all(b"behind").expect("write");
        assert_eq!(look(&server), found(b"before!behind", 6, UrgentByte::Waiting));
        assert_eq!(recv(server.as_raw_fd(), &mut [0], MsgFlags::MSG_OOB), Ok(1));
        assert_eq!(look(&server), found(b"before!behind", 6, UrgentByte::Read));
        server.read_exact(&mut [0; 4]).expect("read");
        assert_eq!(look(&server), found(b"re!behind", 2, UrgentByte::Read));
        client.shutdown(std::net::Shutdown::Write).expect("shut down");
        server.read_exact(&mut [0; 2]).expect("read");
        assert_eq!(look(&server), found(b"!behind", 0, UrgentByte::Read));
        server.read_exact(&mut [0; 6]).expect("read");
        assert_eq!(look(&server), None);
    }

    #[test]
    fn what_is_on_its_way_is_told() {
        let memory = FileMemory::open().expect("as root");
        let (mut client, server) = connection();
        client.set_nonblocking(true).expect("set non-blocking");
        send_urgent(&client);
        assert_eq!(memory.urgent_sent(client.as_fd()).expect("read"), None);
        let mut sent = 0;
        while let Ok(bytes) = client.write(&[7; 10_000]) {
            sent += bytes;
        }
        let fill = || send(client.as_raw_fd(), b"!", MsgFlags::MSG_OOB | MsgFlags::MSG_DONTWAIT);
        assert_eq!(memory.urgent_sent(client.as_fd()).expect("read"), None);
        crate::socket::set_option(
            client.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            &(1_i32 << 24).to_ne_bytes(),
        )
        .expect("room");
        assert_eq!(fill(), Ok(1), "behind {sent} bytes");
        assert!(memory.urgent_sent(client.as_fd()).expect("read").is_some());
        drop(server);
    }
}
