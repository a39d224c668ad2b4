//! Network devices as they are made again: linux/if_link.h, veth.h, in the network namespace of the calling thread.
//!
//! What is kept of a device are the attributes that can be asked for, as the kernel told them.

use super::message::{KIND, Request, attribute, attributes, dump, flagged};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWLINKPROP: u16 = 108;
const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
const NLA_F_NESTED: u16 = 0x8000;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_CARRIER: u16 = 33;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_INET6_TOKEN: u16 = 7;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const VETH_INFO_PEER: u16 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

/// What is kept: IFLA_ADDRESS, _BROADCAST, _MTU, _TXQLEN, _LINKMODE, _IFALIAS, _GROUP, _NUM_TX_QUEUES, _NUM_RX_QUEUES,
/// _PROTO_DOWN, _GSO_MAX_SEGS, _GSO_MAX_SIZE, _GRO_MAX_SIZE, _GSO_IPV4_MAX_SIZE, _GRO_IPV4_MAX_SIZE.
const KEPT: [u16; 15] = [
    IFLA_ADDRESS,
    2,
    IFLA_MTU,
    IFLA_TXQLEN,
    17,
    20,
    27,
    IFLA_NUM_TX_QUEUES,
    IFLA_NUM_RX_QUEUES,
    39,
    40,
    41,
    58,
    63,
    64,
];
/// What a device is made with; all else is set where it then differs.
const AT_BIRTH: [u16; 5] = [
    IFLA_ADDRESS,
    IFLA_MTU,
    IFLA_TXQLEN,
    IFLA_NUM_TX_QUEUES,
    IFLA_NUM_RX_QUEUES,
];
/// What can't be set later.
const ONLY_AT_BIRTH: [u16; 2] = [IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES];

/// `struct ifinfomsg`: family, type, index, flags, which of them.
const HEAD: usize = 16;
const UP: u32 = libc::IFF_UP as u32;
/// Flags that can be set.
const FLAGS: u32 = (libc::IFF_UP
    | libc::IFF_NOARP
    | libc::IFF_PROMISC
    | libc::IFF_ALLMULTI
    | libc::IFF_MULTICAST
    | libc::IFF_DEBUG
    | libc::IFF_DYNAMIC) as u32;

/// The kinds of devices that can be made again, and which of their options (IFLA_INFO_DATA) can be asked for.
pub const DEVICE_KINDS: [(&str, &[u16]); 9] = [
    // IFLA_BR_*: no ids of roots, no timers, no counters.
    (
        "bridge",
        &[
            1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 22, 23, 24, 25, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 41, 42,
            43, 44, 45, 46, 49,
        ],
    ),
    ("dummy", &[]),
    ("ifb", &[]),
    // IFLA_IPVLAN_MODE, _FLAGS.
    ("ipvlan", &[1, 2]),
    // IFLA_MACVLAN_MODE, _FLAGS, _BC_QUEUE_LEN, _BC_CUTOFF.
    ("macvlan", &[1, 2, 7, 9]),
    ("veth", &[]),
    // IFLA_VLAN_ID, _FLAGS, _EGRESS_QOS, _INGRESS_QOS, _PROTOCOL.
    ("vlan", &[1, IFLA_VLAN_FLAGS, 3, 4, 5]),
    // IFLA_VRF_TABLE.
    ("vrf", &[1]),
    // IFLA_VXLAN_*: all.
    (
        "vxlan",
        &[
            1,
            2,
            3,
            4,
            5,
            6,
            7,
            8,
            9,
            10,
            11,
            12,
            13,
            14,
            15,
            16,
            17,
            18,
            19,
            20,
            21,
            22,
            23,
            24,
            25,
            26,
            27,
            IFLA_VXLAN_TTL_INHERIT,
            29,
            30,
            31,
            32,
            33,
            34,
        ],
    ),
];
const IFLA_VLAN_FLAGS: u16 = 2;
const IFLA_VXLAN_TTL_INHERIT: u16 = 28;
/// IFLA_VXLAN_REMCSUM_TX, _RX.
const REMOTE_CHECKSUM: [u16; 2] = [21, 22];
const IFLA_VXLAN_RESERVED_BITS: u16 = 33;
/// VLAN_FLAG_* of linux/if_vlan.h.
const VLAN_FLAGS: u32 = 0x1f;
/// Of a bridge's port (IFLA_INFO_SLAVE_DATA), what can be asked for: IFLA_BRPORT_*. Its number is not, but tells which
/// was first.
const PORT: [u16; 25] = [
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    12,
    IFLA_BRPORT_NO,
    25,
    27,
    28,
    29,
    30,
    31,
    32,
    33,
    34,
    37,
    39,
    40,
    42,
    43,
];
const IFLA_BRPORT_NO: u16 = 18;

/// A network device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: Vec<u8>,
    /// Others that it has.
    pub other_names: Vec<Vec<u8>>,
    /// What it was made as; empty where the namespace has it by itself.
    pub kind: String,
    /// IFF_* that can be set.
    pub flags: u32,
    /// Whether there is a line.
    pub carrier: bool,
    /// The device that it is on, or the other end.
    pub link: Option<u32>,
    /// The device that it is a part of.
    pub master: Option<u32>,
    /// Attributes.
    pub attributes: Vec<u8>,
    /// Those of its kind.
    pub options: Vec<u8>,
    /// Those that it has as a part of another one.
    pub port: Vec<u8>,
    /// How it gets its own address of IPv6 (IN6_ADDR_GEN_MODE_*), where it has IPv6.
    pub address_mode: Option<u8>,
}

/// What a device has that is not a part of [`Device`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beyond {
    /// The number that the namespace has for another one, in which the device is that it is on.
    pub namespace: Option<i32>,
    /// Whether a program sees its packets (XDP).
    pub program: bool,
    /// Whether it has a half of an address of IPv6 that others complete.
    pub token: bool,
}

/// What a device is made with that is not itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside<'a> {
    /// The other end, where it is one of a pair.
    pub other: Option<&'a Device>,
    /// The network namespace of that, where it is another one.
    pub others: Option<BorrowedFd<'a>>,
    /// Its own, where that is another one than the device's that it is on: the caller's is that one's.
    pub own: Option<BorrowedFd<'a>>,
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

fn text(value: &[u8]) -> Vec<u8> {
    value.strip_suffix(&[0]).unwrap_or(value).to_vec()
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

/// All devices of the calling thread's network namespace, by number.
///
/// # Errors
/// Those of netlink.
pub fn devices() -> Result<Vec<(Device, Beyond)>, Errno> {
    let mut request = vec![0; HEAD];
    attribute(&mut request, IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let told = dump(RTM_GETLINK, &request)?;
    let mut all = told
        .iter()
        .map(|one| parse(one).ok_or(Errno::EPROTO))
        .collect::<Result<Vec<_>, _>>()?;
    all.sort_by_key(|(device, _)| device.index);
    Ok(all)
}

fn parse(told: &[u8]) -> Option<(Device, Beyond)> {
    let mut found = Device {
        index: number(told.get(4..)?)?,
        flags: number(told.get(8..)?)? & FLAGS,
        ..Device::default()
    };
    let mut beyond = Beyond::default();
    for (kind, value) in flagged(told.get(HEAD..)?) {
        match kind & KIND {
            IFLA_IFNAME => found.name = text(value),
            IFLA_LINK => found.link = number(value).filter(|link| *link != 0),
            IFLA_MASTER => found.master = number(value),
            IFLA_CARRIER => found.carrier = value.first() == Some(&1),
            IFLA_LINK_NETNSID => beyond.namespace = number(value).map(u32::cast_signed),
            IFLA_XDP => beyond.program = find(value, IFLA_XDP_ATTACHED).is_some_and(|how| how != [0]),
            IFLA_PROP_LIST => {
                let names = attributes(value).filter(|(kind, _)| *kind == IFLA_ALT_IFNAME);
                found.other_names = names.map(|(_, name)| text(name)).collect();
            }
            IFLA_AF_SPEC => {
                let six = find(value, libc::AF_INET6 as u16).unwrap_or_default();
                found.address_mode = find(six, IFLA_INET6_ADDR_GEN_MODE).and_then(|mode| mode.first().copied());
                let token = find(six, IFLA_INET6_TOKEN).unwrap_or_default();
                beyond.token = token.iter().any(|byte| *byte != 0);
            }
            IFLA_LINKINFO => information(&mut found, value)?,
            kept if KEPT.contains(&kept) => attribute(&mut found.attributes, kind, value),
            _ => {}
        }
    }
    found.attributes = in_order(&found.attributes);
    Some((found, beyond))
}

fn information(found: &mut Device, told: &[u8]) -> Option<()> {
    found.kind = String::from_utf8(text(find(told, IFLA_INFO_KIND).unwrap_or_default())).ok()?;
    let options = find(told, IFLA_INFO_DATA).unwrap_or_default();
    found.options = options_of(&found.kind, options);
    if find(told, IFLA_INFO_SLAVE_KIND).is_some_and(|kind| text(kind) == b"bridge") {
        found.port = only(find(told, IFLA_INFO_SLAVE_DATA).unwrap_or_default(), &PORT);
    }
    Some(())
}

fn options_of(kind: &str, told: &[u8]) -> Vec<u8> {
    let known = DEVICE_KINDS.iter().find(|(name, _)| *name == kind);
    let kept = only(told, known.map_or(&[], |(_, kept)| kept));
    let mut all = Vec::new();
    for (option, value) in flagged(&kept) {
        match (kind, option & KIND) {
            ("vlan", IFLA_VLAN_FLAGS) => {
                // Flags, and which of them: all, those that there are not, too.
                let flags = number(value).unwrap_or(0) & VLAN_FLAGS;
                attribute(&mut all, option, &[flags, VLAN_FLAGS].map(u32::to_ne_bytes).concat());
            }
            // It is told as a number, but asked for by being there.
            ("vxlan", IFLA_VXLAN_TTL_INHERIT) if value == [0] => {}
            ("vxlan", IFLA_VXLAN_TTL_INHERIT) => attribute(&mut all, option, &[]),
            _ => attribute(&mut all, option, value),
        }
    }
    all
}

/// Those of some kinds, in their order.
fn only(all: &[u8], kinds: &[u16]) -> Vec<u8> {
    let mut kept = Vec::new();
    for (kind, value) in flagged(all).filter(|(kind, _)| kinds.contains(&(kind & KIND))) {
        attribute(&mut kept, kind, value);
    }
    in_order(&kept)
}

fn in_order(all: &[u8]) -> Vec<u8> {
    let mut sorted: Vec<_> = flagged(all).collect();
    sorted.sort_by_key(|(kind, _)| kind & KIND);
    let mut bytes = Vec::new();
    for (kind, value) in sorted {
        attribute(&mut bytes, kind, value);
    }
    bytes
}

/// Those of `wanted` that are others in `present`.
fn differing(wanted: &[u8], present: &[u8], but: &[u16]) -> Vec<u8> {
    let mut all = Vec::new();
    for (kind, value) in flagged(wanted).filter(|(kind, _)| !but.contains(&(kind & KIND))) {
        if find(present, kind & KIND) != Some(value) {
            attribute(&mut all, kind, value);
        }
    }
    all
}

fn head(index: u32, flags: u32, which: u32) -> Vec<u8> {
    [0, index, flags, which].map(u32::to_ne_bytes).concat()
}

/// A change of a device, if it is one.
fn change(index: u32, attributes: &[u8]) -> Result<(), Errno> {
    if attributes.is_empty() {
        return Ok(());
    }
    let body = [head(index, 0, 0), attributes.to_vec()].concat();
    Request::new(RTM_NEWLINK, 0, &body).perform()
}

fn nested(kind: u16, inner: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    attribute(&mut bytes, kind | NLA_F_NESTED, inner);
    bytes
}

impl Device {
    /// Its hardware address, as long as its kind has them; `None` where it has none.
    #[must_use]
    pub fn hardware(&self) -> Option<&[u8]> {
        attributes(&self.attributes).find_map(|(kind, value)| (kind == IFLA_ADDRESS).then_some(value))
    }

    /// What it is asked for with: number, name, network namespace, and what is set from the beginning.
    fn birth(&self, namespace: Option<BorrowedFd<'_>>) -> Vec<u8> {
        let mut body = head(self.index, 0, 0);
        if let Some(namespace) = namespace {
            attribute(&mut body, IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        }
        attribute(&mut body, IFLA_IFNAME, &[&self.name[..], &[0]].concat());
        // A bridge that is given an address does not take those of its ports.
        let own = |kind: &u16| AT_BIRTH.contains(kind) && (*kind != IFLA_ADDRESS || self.kind != "bridge");
        for (kind, value) in attributes(&self.attributes).filter(|(kind, _)| own(kind)) {
            attribute(&mut body, kind, value);
        }
        body
    }

    /// Makes it, with its other end where it is one of a pair. It is down, and for itself.
    ///
    /// # Errors
    /// EINVAL for a kind that is none of [`DEVICE_KINDS`]; others of netlink.
    pub fn make(&self, beside: &Beside<'_>) -> Result<(), Errno> {
        if !DEVICE_KINDS.iter().any(|(kind, _)| *kind == self.kind) {
            return Err(Errno::EINVAL);
        }
        let mut body = self.birth(beside.own);
        let options = match beside.other {
            Some(other) => nested(VETH_INFO_PEER, &other.birth(beside.others)),
            None => {
                if let Some(link) = self.link {
                    attribute(&mut body, IFLA_LINK, &link.to_ne_bytes());
                }
                let options = options_of(&self.kind, &self.options);
                match self.kind.as_str() {
                    // The kernel takes some only where they change something.
                    "bridge" => Vec::new(),
                    // Which bits are left over follows from what else is asked for, be it only to be off.
                    "vxlan" => {
                        let off = attributes(&options).filter(|(_, value)| *value == [0]);
                        let mut left_out = vec![IFLA_VXLAN_RESERVED_BITS];
                        left_out.extend(off.map(|(kind, _)| kind).filter(|kind| REMOTE_CHECKSUM.contains(kind)));
                        differing(&options, &[], &left_out)
                    }
                    _ => options,
                }
            }
        };
        let mut information = Vec::new();
        attribute(&mut information, IFLA_INFO_KIND, &[self.kind.as_bytes(), &[0]].concat());
        attribute(&mut information, IFLA_INFO_DATA | NLA_F_NESTED, &options);
        body.extend(nested(IFLA_LINKINFO, &information));
        Request::new(RTM_NEWLINK, CREATE, &body).perform()
    }

    /// The other end of a pair that it is one end of, with any number, and the same largest packet.
    #[must_use]
    pub fn other_end(&self, name: &[u8]) -> Self {
        Self {
            name: name.to_vec(),
            kind: self.kind.clone(),
            attributes: only(&self.attributes, &[IFLA_MTU]),
            ..Self::default()
        }
    }

    /// Makes it a part of what it is to be a part of.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn join(&self) -> Result<(), Errno> {
        let Some(master) = self.master else { return Ok(()) };
        let mut body = Vec::new();
        attribute(&mut body, IFLA_MASTER, &master.to_ne_bytes());
        change(self.index, &body)
    }

    /// Sets what is another one `now`: name, attributes, options of its kind and as a part, flags but IFF_UP, and more names.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn set(&self, now: &Self) -> Result<(), Errno> {
        if self.name != now.name {
            let mut body = Vec::new();
            attribute(&mut body, IFLA_IFNAME, &[&self.name[..], &[0]].concat());
            change(self.index, &body)?;
        }
        let wanted = only(&self.attributes, &KEPT);
        // One by one: where one is refused, the others are set, too.
        for (kind, value) in flagged(&differing(&wanted, &now.attributes, &ONLY_AT_BIRTH)) {
            let mut body = Vec::new();
            attribute(&mut body, kind, value);
            change(self.index, &body)?;
        }
        let options = differing(&options_of(&self.kind, &self.options), &now.options, &[]);
        if !options.is_empty() {
            let mut information = Vec::new();
            attribute(&mut information, IFLA_INFO_KIND, &[self.kind.as_bytes(), &[0]].concat());
            attribute(&mut information, IFLA_INFO_DATA | NLA_F_NESTED, &options);
            change(self.index, &nested(IFLA_LINKINFO, &information))?;
        }
        let port = differing(&only(&self.port, &PORT), &now.port, &[IFLA_BRPORT_NO]);
        if !port.is_empty() {
            let mut information = Vec::new();
            attribute(&mut information, IFLA_INFO_SLAVE_KIND, b"bridge\0");
            attribute(&mut information, IFLA_INFO_SLAVE_DATA | NLA_F_NESTED, &port);
            change(self.index, &nested(IFLA_LINKINFO, &information))?;
        }
        for name in self.other_names.iter().filter(|name| !now.other_names.contains(name)) {
            let mut names = Vec::new();
            attribute(&mut names, IFLA_ALT_IFNAME, &[&name[..], &[0]].concat());
            let body = [head(self.index, 0, 0), nested(IFLA_PROP_LIST, &names)].concat();
            let flags = libc::NLM_F_CREATE as u16 | libc::NLM_F_EXCL as u16 | libc::NLM_F_APPEND as u16;
            Request::new(RTM_NEWLINKPROP, flags, &body).perform()?;
        }
        let which = (self.flags ^ now.flags) & FLAGS & !UP;
        if which == 0 {
            return Ok(());
        }
        Request::new(RTM_NEWLINK, 0, &head(self.index, self.flags & which, which)).perform()
    }

    /// Puts it up, or down.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn switch(&self) -> Result<(), Errno> {
        Request::new(RTM_NEWLINK, 0, &head(self.index, self.flags & UP, UP)).perform()
    }

    /// Whether it is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.flags & UP != 0
    }

    /// Has it get its own address of IPv6 in another way (IN6_ADDR_GEN_MODE_*), from now on.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn set_address_mode(&self, mode: u8) -> Result<(), Errno> {
        let mut inner = Vec::new();
        attribute(&mut inner, IFLA_INET6_ADDR_GEN_MODE, &[mode]);
        let six = nested(libc::AF_INET6 as u16, &inner);
        change(self.index, &nested(IFLA_AF_SPEC, &six))
    }

    /// Takes the line away, or puts it back, where that is asked for.
    ///
    /// # Errors
    /// EOPNOTSUPP of most devices.
    pub fn set_carrier(&self) -> Result<(), Errno> {
        let mut body = Vec::new();
        attribute(&mut body, IFLA_CARRIER, &[u8::from(self.carrier)]);
        change(self.index, &body)
    }

    /// The number that it has as a part of a bridge.
    #[must_use]
    pub fn port_number(&self) -> u16 {
        let number = find(&self.port, IFLA_BRPORT_NO).and_then(|value| value.get(..2));
        number.map_or(0, |bytes| u16::from_ne_bytes([bytes[0], bytes[1]]))
    }

    /// What would differ from one that was made like it: all but what follows from others, or from time.
    #[must_use]
    pub fn essence(&self) -> Self {
        let mut bare = self.clone();
        let but_number: Vec<u16> = PORT.into_iter().filter(|kind| *kind != IFLA_BRPORT_NO).collect();
        bare.port = only(&self.port, &but_number);
        bare
    }
}
