//! Network devices, their addresses and routes: rtnetlink(7), in the network namespace of the calling thread.

mod device;
pub mod ipv4;
mod link;
mod make;
mod message;
mod namespace;
mod other;
mod table;
mod traffic;

pub use device::{Beside, Beyond, DEVICE_KINDS, Device, devices};
pub use link::{Link, TunLink, link, set_link};
pub use make::{VethEnd, make_bridge, make_veth, remove};
pub(crate) use message::flagged;
pub use message::{attributes, netfilter};
pub use namespace::namespace_number;
pub use other::{has_label_routes, has_transforms, lasting_groups};
pub use table::{Entry, Table, Unfit};
pub use traffic::{Strange, Traffic};

use message::{Request, dump};
use nix::errno::Errno;

/// linux/rtnetlink.h.
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_KERNEL: u8 = 2;
const RTN_UNICAST: u8 = 1;
const RTM_F_CLONED: u32 = 0x200;
/// Of a hop, what is not the kernel's own state: RTNH_F_ONLINK.
const KEPT_FLAGS: u32 = 4;

/// What an address is made of: IFA_ADDRESS, _LOCAL, _LABEL, _BROADCAST, _ANYCAST, _CACHEINFO, _FLAGS, _RT_PRIORITY, _PROTO.
/// Others could be about another namespace.
const ADDRESS: [u16; 9] = [1, 2, 3, 4, 5, 6, 8, 9, 11];
/// What a route over one device is made of: RTA_DST, _SRC, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _METRICS, _TABLE, _VIA, _PREF.
const ROUTE: [u16; 10] = [1, 2, RTA_OIF, 5, 6, 7, 8, 15, 18, 20];
/// What the kernel tells besides, and knows by itself: RTA_CACHEINFO, _EXPIRES.
const PASSING: [u16; 2] = [12, 23];

/// `struct ifaddrmsg` and `struct rtmsg`.
const ADDRESS_HEAD: usize = 8;
const ROUTE_HEAD: usize = 12;

const NEW: u16 = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The addresses of a device: messages of rtnetlink, without their heads.
///
/// # Errors
/// Those of netlink.
pub fn addresses(index: u32) -> Result<Vec<Vec<u8>>, Errno> {
    let all = dump(RTM_GETADDR, &[0; ADDRESS_HEAD])?;
    Ok(all
        .into_iter()
        .filter(|address| number(address, 4) == Some(index))
        .collect())
}

/// Gives a device an address that [`addresses`] told of this one or another.
///
/// # Errors
/// Those of netlink.
pub fn add_address(index: u32, address: &[u8]) -> Result<(), Errno> {
    change_address(RTM_NEWADDR, NEW, index, address)
}

/// Takes one away.
///
/// # Errors
/// Those of netlink.
pub fn remove_address(index: u32, address: &[u8]) -> Result<(), Errno> {
    change_address(RTM_DELADDR, 0, index, address)
}

fn change_address(kind: u16, flags: u16, index: u32, address: &[u8]) -> Result<(), Errno> {
    let mut body = address.get(..ADDRESS_HEAD).ok_or(Errno::EINVAL)?.to_vec();
    body[4..].copy_from_slice(&index.to_ne_bytes());
    for (kind, value) in attributes(&address[ADDRESS_HEAD..]) {
        if ADDRESS.contains(&kind) {
            message::attribute(&mut body, kind, value);
        }
    }
    Request::new(kind, flags, &body).perform()
}

/// The routes over a device but those that come with its addresses, as messages without their heads.
///
/// # Errors
/// Those of netlink; ENOTSUP for routes of another kind than over one device.
pub fn routes(index: u32) -> Result<Vec<Vec<u8>>, Errno> {
    let mut found = Vec::new();
    for route in dump(RTM_GETROUTE, &[0; ROUTE_HEAD])? {
        let (Some(head), Some(flags)) = (route.get(..ROUTE_HEAD), number(&route, 8)) else {
            return Err(Errno::EPROTO);
        };
        if head[4] == RT_TABLE_LOCAL || head[5] == RTPROT_KERNEL || flags & RTM_F_CLONED != 0 {
            continue;
        }
        let all = || attributes(&route[ROUTE_HEAD..]);
        let over = all()
            .find(|(kind, _)| *kind == RTA_OIF)
            .and_then(|(_, value)| number(value, 0));
        if over.is_some_and(|over| over != index) {
            continue;
        }
        let simple = all().all(|(kind, _)| ROUTE.contains(&kind) || PASSING.contains(&kind));
        match over {
            Some(_) if simple && head[7] == RTN_UNICAST => {}
            // Over others, or nothing, as one that forbids.
            None if !all().any(|(kind, value)| kind == RTA_MULTIPATH && hops(value).contains(&index)) => continue,
            _ => return Err(Errno::ENOTSUP),
        }
        let mut kept = head.to_vec();
        kept[8..].copy_from_slice(&(flags & KEPT_FLAGS).to_ne_bytes());
        for (kind, value) in all().filter(|(kind, _)| ROUTE.contains(kind)) {
            message::attribute(&mut kept, kind, value);
        }
        found.push(kept);
    }
    Ok(found)
}

/// The devices of several hops: of `struct rtnexthop`, which begins with its length, at 4.
fn hops(mut bytes: &[u8]) -> Vec<u32> {
    let mut found = Vec::new();
    while let (Some(head), Some(device)) = (bytes.get(..2), number(bytes, 4)) {
        found.push(device);
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]])).max(1);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Makes a route that [`routes`] told, over this device.
///
/// # Errors
/// Those of netlink; EINVAL for any other route.
pub fn add_route(index: u32, route: &[u8]) -> Result<(), Errno> {
    let mut body = route.get(..ROUTE_HEAD).ok_or(Errno::EINVAL)?.to_vec();
    let mut over = false;
    for (kind, value) in attributes(&route[ROUTE_HEAD..]) {
        if !ROUTE.contains(&kind) {
            return Err(Errno::EINVAL);
        }
        let own = index.to_ne_bytes();
        over |= kind == RTA_OIF;
        message::attribute(&mut body, kind, if kind == RTA_OIF { &own } else { value });
    }
    if !over || body[7] != RTN_UNICAST {
        return Err(Errno::EINVAL);
    }
    Request::new(RTM_NEWROUTE, NEW, &body).perform()
}

#[cfg(test)]
mod tests {
    use super::{RTA_OIF, add_route, addresses, hops, link, message, routes};
    use nix::{
        errno::Errno,
        sched::{CloneFlags, unshare},
    };

    #[test]
    fn loopback_has_its_addresses_and_no_routes() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        crate::network::raise_loopback().expect("lo");
        let lo = link(b"lo").expect("it is there");
        assert_eq!((lo.mtu, lo.tun), (65_536, None));
        let v4 = addresses(lo.index).expect("read");
        assert!(v4.iter().any(|address| address[0] == libc::AF_INET as u8), "{v4:?}");
        assert_eq!(routes(lo.index), Ok(Vec::new()));
        assert_eq!(link(b"none"), Err(Errno::ENODEV));
        // One that forbids, and one over nothing.
        let mut forbids = vec![2, 0, 0, 0, 254, 3, 0, 7, 0, 0, 0, 0];
        assert_eq!(add_route(lo.index, &forbids), Err(Errno::EINVAL));
        message::attribute(&mut forbids, RTA_OIF, &[0; 4]);
        assert_eq!(add_route(lo.index, &forbids), Err(Errno::EINVAL));
        assert_eq!(
            add_route(lo.index, &[2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]),
            Err(Errno::EINVAL)
        );
    }

    #[test]
    fn devices_of_several_hops_are_found() {
        let two = [8, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0];
        assert_eq!((hops(&two), hops(&two[..5])), (vec![7, 9], vec![]));
    }
}
