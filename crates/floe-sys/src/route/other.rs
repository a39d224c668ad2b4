//! What a network namespace has besides devices and tables: linux/if_bridge.h, xfrm.h.

use super::message::{Request, attributes, dump};
use nix::errno::Errno;

const RTM_GETROUTE: u16 = 26;
const RTM_GETMDB: u16 = 86;
const XFRM_MSG_GETSA: u16 = 18;
const XFRM_MSG_GETPOLICY: u16 = 21;

/// `struct rtmsg`, and the address family of MPLS.
const ROUTE_HEAD: usize = 12;
const MPLS: u8 = 28;
/// `struct br_port_msg`: device at 4.
const GROUPS_HEAD: usize = 8;
/// MDBA_MDB, _MDB_ENTRY, _MDB_ENTRY_INFO are all 1; `struct br_mdb_entry`: how long it stays at 4.
const MDBA: u16 = 1;
const MDB_PERMANENT: u8 = 1;

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// None where the kernel knows nothing of the kind.
fn all(kind: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
    match dump(kind, body) {
        Err(Errno::EOPNOTSUPP) => Ok(Vec::new()),
        all => all,
    }
}

/// Bridges that have groups in their tables that stay.
///
/// # Errors
/// Those of netlink.
pub fn lasting_groups() -> Result<Vec<u32>, Errno> {
    let mut request = [0; GROUPS_HEAD];
    request[0] = libc::AF_BRIDGE as u8;
    let mut found = Vec::new();
    for one in all(RTM_GETMDB, &request)? {
        let inside = |bytes: &[u8]| -> Vec<Vec<u8>> {
            let all = attributes(bytes).filter(|(kind, _)| *kind == MDBA);
            all.map(|(_, value)| value.to_vec()).collect()
        };
        let tables = inside(one.get(GROUPS_HEAD..).ok_or(Errno::EPROTO)?);
        let entries = tables.iter().flat_map(|table| inside(table));
        let mut details = entries.flat_map(|entry| inside(&entry));
        if details.any(|detail| detail.get(4) == Some(&MDB_PERMANENT)) {
            found.extend(number(&one, 4));
        }
    }
    Ok(found)
}

/// Whether there are routes of MPLS.
///
/// # Errors
/// Those of netlink.
pub fn has_label_routes() -> Result<bool, Errno> {
    let mut request = [0; ROUTE_HEAD];
    request[0] = MPLS;
    // Without MPLS the kernel tells of others.
    Ok(all(RTM_GETROUTE, &request)?
        .iter()
        .any(|one| one.first() == Some(&MPLS)))
}

/// Whether there are states or policies of IPsec.
///
/// # Errors
/// Those of netlink.
pub fn has_transforms() -> Result<bool, Errno> {
    for kind in [XFRM_MSG_GETSA, XFRM_MSG_GETPOLICY] {
        let request = Request::to(libc::NETLINK_XFRM, kind, libc::NLM_F_DUMP as u16, &[]);
        match request.answers() {
            Ok(all) if all.is_empty() => {}
            Ok(_) => return Ok(true),
            Err(Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}
