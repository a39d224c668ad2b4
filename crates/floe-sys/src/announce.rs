//! Telling neighbours where an address is now: a gratuitous request of ARP (RFC 5227, ARP Announcement), an unsolicited
//! neighbour advertisement (RFC 4861, 7.2.6). Bridges and switches on the way learn from the frame by which port it is reached.

use crate::{packet, socket};
use nix::{
    errno::Errno,
    sys::socket::{LinkAddr, MsgFlags, SockaddrLike, sendto},
};
use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
};

/// Bytes of a hardware address of Ethernet, which both protocols are made for here.
pub const HARDWARE_BYTES: usize = 6;
type Hardware = [u8; HARDWARE_BYTES];

/// Protocols of linux/if_ether.h.
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
/// ARPHRD_ETHER and ARPOP_REQUEST of linux/if_arp.h.
const ETHERNET: u16 = 1;
const REQUEST: u16 = 1;

const EVERYBODY: Hardware = [0xff; HARDWARE_BYTES];
/// Of ff02::1, all nodes (RFC 2464).
const ALL_NODES: Hardware = [0x33, 0x33, 0, 0, 0, 1];

/// Tells the neighbours of a device of the calling thread's network namespace, by its number, that this address is at this
/// hardware address. `routes` is whether the device forwards packets, which those of IPv6 are told, too.
///
/// # Errors
/// EPERM without CAP_NET_RAW; those of packet(7), as ENETDOWN where the device is down.
pub fn announce(device: u32, hardware: Hardware, address: IpAddr, routes: bool) -> Result<(), Errno> {
    let (protocol, to, bytes) = match address.to_canonical() {
        IpAddr::V4(four) => (ETH_P_ARP, EVERYBODY, request(hardware, four)),
        IpAddr::V6(six) => (ETH_P_IPV6, ALL_NODES, packet::advertisement(hardware, six, routes)),
    };
    // Protocol 0: nothing comes to it.
    let socket = socket::new(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
    let mut place = [0; 8];
    place[..HARDWARE_BYTES].copy_from_slice(&to);
    let there = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: device as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: HARDWARE_BYTES as u8,
        sll_addr: place,
    };
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: it is a sockaddr_ll of this size.
    let there = unsafe { LinkAddr::from_raw((&raw const there).cast(), Some(size)) }.ok_or(Errno::EINVAL)?;
    sendto(socket.as_raw_fd(), &bytes, &there, MsgFlags::empty()).map(drop)
}

/// RFC 826, for IPv4 over Ethernet.
fn request(hardware: Hardware, address: Ipv4Addr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    bytes.extend(ETHERNET.to_be_bytes());
    bytes.extend(ETH_P_IP.to_be_bytes());
    bytes.extend([HARDWARE_BYTES as u8, 4]);
    bytes.extend(REQUEST.to_be_bytes());
    bytes.extend(hardware);
    bytes.extend(address.octets());
    bytes.extend([0; HARDWARE_BYTES]);
    bytes.extend(address.octets());
    bytes
}

#[cfg(test)]
mod tests {
    use super::request;
    use std::net::Ipv4Addr;

    #[test]
    fn a_request_of_arp_names_the_address_twice() {
        let bytes = request([2, 0, 0, 0, 0, 9], Ipv4Addr::new(10, 9, 0, 2));
        let expected = [
            &[0, 1, 8, 0, 6, 4, 0, 1][..],
            &[2, 0, 0, 0, 0, 9, 10, 9, 0, 2],
            &[0, 0, 0, 0, 0, 0, 10, 9, 0, 2],
        ];
        assert_eq!(bytes, expected.concat());
    }
}
