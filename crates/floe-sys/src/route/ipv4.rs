//! Addresses and routes of IP version 4, made and looked at as such: linux/if_addr.h, linux/rtnetlink.h.

use super::{
    ADDRESS_HEAD, NEW, ROUTE_HEAD, RTM_GETADDR, RTM_GETROUTE, RTM_NEWADDR, RTM_NEWROUTE, RTN_UNICAST, attributes,
    message::{Request, attribute, dump},
};
use nix::errno::Errno;
use std::net::Ipv4Addr;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const FAMILY: u8 = libc::AF_INET as u8;

/// Addresses that have the first so many bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// One of them.
    pub address: Ipv4Addr,
    /// How many bits they share.
    pub bits: u8,
}

impl Network {
    /// Whether an address is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let shared = u32::from(self.bits.min(other.bits).min(32));
        let differing = u32::from(self.address) ^ u32::from(other.address);
        shared == 0 || differing >> (32 - shared) == 0
    }
}

/// Where the calling thread's network namespace has addresses itself, or ways to others, but for the way to all.
///
/// # Errors
/// Those of netlink.
pub fn networks_in_use() -> Result<Vec<Network>, Errno> {
    let mut found = Vec::new();
    let asked = |head: usize| [&[FAMILY], &vec![0; head - 1][..]].concat();
    for (all, head, kind) in [
        (dump(RTM_GETADDR, &asked(ADDRESS_HEAD))?, ADDRESS_HEAD, IFA_LOCAL),
        (dump(RTM_GETROUTE, &asked(ROUTE_HEAD))?, ROUTE_HEAD, RTA_DST),
    ] {
        for message in all.iter().filter(|message| message.first() == Some(&FAMILY)) {
            let told = message.get(head..).unwrap_or_default();
            let value = attributes(told).find(|(one, _)| *one == kind);
            let bytes: Option<[u8; 4]> = value.and_then(|(_, value)| value.try_into().ok());
            // A way to all has no destination.
            if let (Some(bytes), Some(bits)) = (bytes, message.get(1)) {
                found.push(Network {
                    address: bytes.into(),
                    bits: *bits,
                });
            }
        }
    }
    Ok(found)
}

/// Gives a device an address, whose network is then reached by it.
///
/// # Errors
/// Those of netlink; EEXIST where it has it.
pub fn give_address(index: u32, network: Network) -> Result<(), Errno> {
    let mut body = vec![FAMILY, network.bits, 0, 0];
    body.extend(index.to_ne_bytes());
    for kind in [IFA_LOCAL, IFA_ADDRESS] {
        attribute(&mut body, kind, &network.address.octets());
    }
    Request::new(RTM_NEWADDR, (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16, &body).perform()
}

/// Sends all that has no other way to a gateway.
///
/// # Errors
/// Those of netlink.
pub fn route_to_all(index: u32, gateway: Ipv4Addr) -> Result<(), Errno> {
    let mut body = vec![FAMILY, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST];
    body.extend([0; 4]);
    attribute(&mut body, RTA_GATEWAY, &gateway.octets());
    attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
    Request::new(RTM_NEWROUTE, NEW, &body).perform()
}

#[cfg(test)]
mod tests {
    use super::{super::make, Network, give_address, networks_in_use, route_to_all};
    use nix::sched::{CloneFlags, unshare};

    fn network(text: &str, bits: u8) -> Network {
        Network {
            address: text.parse().expect("an address"),
            bits,
        }
    }

    #[test]
    fn networks_overlap_where_the_wider_one_has_the_other() {
        let small = network("10.1.2.5", 30);
        for (other, overlaps) in [
            (network("10.1.2.6", 30), true),
            (network("10.1.2.8", 30), false),
            (network("10.0.0.0", 8), true),
            (network("11.0.0.0", 8), false),
            (network("0.0.0.0", 0), true),
            (network("10.1.2.5", 32), true),
        ] {
            assert_eq!(
                (small.overlaps(other), other.overlaps(small)),
                (overlaps, overlaps),
                "{other:?}"
            );
        }
    }

    #[test]
    fn addresses_and_ways_that_are_given_are_in_use() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let end = |name| make::VethEnd {
            name,
            address: None,
            index: 0,
            namespace: None,
        };
        make::make_veth(&end("one"), &end("other")).expect("a pair");
        let link = super::super::link(b"one").expect("it is there");
        let up = libc::IFF_UP as u32;
        super::super::set_link(
            link.index,
            &super::super::Link {
                flags: up,
                ..link.clone()
            },
            up,
        )
        .expect("up");
        give_address(link.index, network("10.1.2.5", 30)).expect("an address");
        route_to_all(link.index, "10.1.2.6".parse().expect("an address")).expect("a way");
        let used = networks_in_use().expect("read");
        assert!(used.contains(&network("10.1.2.5", 30)), "{used:?}");
        assert!(used.iter().all(|one| one.bits > 0), "{used:?}");
        make::remove(link.index).expect("it goes");
        assert!(!networks_in_use().expect("read").contains(&network("10.1.2.5", 30)));
    }
}
