//! Errors that wait in sockets with what they are about (MSG_ERRQUEUE, ip(7)): net/ipv4/ip_sockglue.c, net/ipv6/datagram.c.
//! A look by recvmsg(2) takes them.

use super::{FileMemory, WaitingPacket};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::BorrowedFd,
};

/// What is asked for here, and not by `connections`.
pub(super) const STRUCTURES: [&str; 1] = ["sock_exterr_skb"];

const MOST_ERRORS: usize = 1 << 16;
/// ETH_P_IPV6.
const IPV6: u16 = 0x86dd;

/// An error that nobody has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedError {
    /// errno.
    pub error: u32,
    /// SO_EE_ORIGIN_* of linux/errqueue.h.
    pub origin: u8,
    /// `ee_type` and `ee_code`: those of ICMP.
    pub kind: [u8; 2],
    /// `ee_info` and `ee_data`.
    pub more: [u32; 2],
    /// Whom it was sent to that could not be sent.
    pub to: (IpAddr, u16),
    /// What told of it.
    pub packet: WaitingPacket,
}

impl FileMemory {
    /// Errors that wait in a socket of the caller's of the internet's, the first one first. Nobody reads them meanwhile.
    ///
    /// # Errors
    /// Those of reading.
    pub fn queued_errors(&self, socket: BorrowedFd<'_>) -> io::Result<Vec<QueuedError>> {
        let memory = &self.0;
        let head = self.sock(socket)? + memory.types.offset("sock", "sk_error_queue")?;
        let mut found = Vec::new();
        let mut buffer = memory.word(head)?;
        while buffer != head {
            if found.len() == MOST_ERRORS {
                return Err(io::Error::other("the kernel's queue of errors has no end"));
            }
            found.push(self.queued_error(buffer)?);
            buffer = memory.member("sk_buff", buffer, "next")?;
        }
        Ok(found)
    }

    fn queued_error(&self, buffer: u64) -> io::Result<QueuedError> {
        let memory = &self.0;
        let told = buffer + memory.types.offset("sk_buff", "cb")?;
        let number = |member: &str| memory.number("sock_exterr_skb", told, member);
        let byte = |member: &str| number(member).map(|word| word as u8);
        let packet = self.packet(buffer)?;
        let is_six = memory.number("sk_buff", buffer, "protocol")? as u16 == IPV6.to_be();
        // Of others than those of the internet there is no address.
        let place = usize::from(number("addr_offset")? as u16);
        let bytes = packet.header.get(place..).unwrap_or_default();
        let address = if is_six {
            bytes.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).into())
        } else {
            bytes.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes).into())
        };
        Ok(QueuedError {
            error: number("ee.ee_errno")?,
            origin: byte("ee.ee_origin")?,
            kind: [byte("ee.ee_type")?, byte("ee.ee_code")?],
            more: [number("ee.ee_info")?, number("ee.ee_data")?],
            to: (
                address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
                u16::from_be(number("port")? as u16),
            ),
            packet,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        kernel::FileMemory,
        socket::{events, set_option},
    };
    use std::{
        net::{IpAddr, UdpSocket},
        os::fd::AsFd,
    };

    #[test]
    fn errors_are_told_with_what_told_of_them() {
        let memory = FileMemory::open().expect("as root");
        for ip in ["127.0.0.1", "::1"] {
            let ip: IpAddr = ip.parse().expect("an address");
            let socket = UdpSocket::bind((ip, 0)).expect("bind");
            let (level, name) = match ip {
                IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR),
                IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
            };
            set_option(socket.as_fd(), level, name, &1_i32.to_ne_bytes()).expect("set");
            let gone = UdpSocket::bind((ip, 0))
                .expect("bind")
                .local_addr()
                .expect("an address");
            socket.send_to(b"to nobody", gone).expect("send");
            while events(socket.as_fd(), 0).expect("poll") & libc::POLLERR == 0 {
                std::thread::yield_now();
            }
            // More than can be sent.
            let error = socket.send_to(&[0; 65_535], gone).expect_err("too long");
            // It tells of the first one first.
            let error = match error.raw_os_error() {
                Some(libc::ECONNREFUSED) => socket.send_to(&[0; 65_535], gone).expect_err("too long"),
                _ => error,
            };
            assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
            for _ in 0..2 {
                let found = memory.queued_errors(socket.as_fd()).expect("read");
                let told: Vec<_> = found.iter().map(|one| (one.error as i32, one.origin, one.to)).collect();
                let own = if ip.is_ipv4() { 2 } else { 3 };
                let port = if ip.is_ipv4() { 0 } else { gone.port() };
                let wanted = [
                    (libc::ECONNREFUSED, own, (ip, gone.port())),
                    (libc::EMSGSIZE, 1, (ip, port)),
                ];
                assert_eq!(told, wanted);
                assert_eq!(found[0].packet.content, b"to nobody");
                assert_eq!(found[0].kind, if ip.is_ipv4() { [3, 3] } else { [1, 4] });
                assert!(found[1].packet.content.is_empty() && found[1].more[0] >= 65_535);
            }
        }
    }
}
