//! Network devices, their addresses and routes: rtnetlink(7), in the network namespace of the calling thread.

mod link;
mod message;

pub use link::{Link, TunLink, link, set_link};
pub use message::attributes;

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
const RTA_CACHEINFO: u16 = 12;
const RTA_NH_ID: u16 = 30;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_KERNEL: u8 = 2;
const RTM_F_CLONED: u32 = 0x200;
/// Of a hop, what is not the kernel's own state: RTNH_F_ONLINK.
const KEPT_FLAGS: u32 = 4;

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
    let mut body = address.to_vec();
    let place = body.get_mut(4..ADDRESS_HEAD).ok_or(Errno::EINVAL)?;
    place.copy_from_slice(&index.to_ne_bytes());
    Request::new(kind, flags, &body).perform()
}

/// The routes over a device but those that come with its addresses, as messages without their heads; an error for one that
/// leads over other devices too.
///
/// # Errors
/// Those of netlink; ENOTSUP for such routes.
pub fn routes(index: u32) -> Result<Vec<Vec<u8>>, Errno> {
    let mut found = Vec::new();
    for route in dump(RTM_GETROUTE, &[0; ROUTE_HEAD])? {
        let (Some(head), Some(flags)) = (route.get(..ROUTE_HEAD), number(&route, 8)) else {
            return Err(Errno::EPROTO);
        };
        if head[4] == RT_TABLE_LOCAL || head[5] == RTPROT_KERNEL || flags & RTM_F_CLONED != 0 {
            continue;
        }
        let mut own = false;
        let mut kept = head.to_vec();
        kept[8..12].copy_from_slice(&(flags & KEPT_FLAGS).to_ne_bytes());
        for (kind, value) in attributes(&route[ROUTE_HEAD..]) {
            match kind {
                RTA_OIF => own |= number(value, 0) == Some(index),
                // struct rtnexthop has the device at 4.
                RTA_MULTIPATH | RTA_NH_ID => return Err(Errno::ENOTSUP),
                RTA_CACHEINFO => continue,
                _ => {}
            }
            message::attribute(&mut kept, kind, value);
        }
        if own {
            found.push(kept);
        }
    }
    Ok(found)
}

/// Makes a route that [`routes`] told, over this device.
///
/// # Errors
/// Those of netlink.
pub fn add_route(index: u32, route: &[u8]) -> Result<(), Errno> {
    let mut body = route.get(..ROUTE_HEAD).ok_or(Errno::EINVAL)?.to_vec();
    for (kind, value) in attributes(&route[ROUTE_HEAD..]) {
        if kind == RTA_OIF {
            message::attribute(&mut body, kind, &index.to_ne_bytes());
        } else {
            message::attribute(&mut body, kind, value);
        }
    }
    Request::new(RTM_NEWROUTE, NEW, &body).perform()
}
