//! What a network namespace has besides devices, as messages of rtnetlink(7) that can be given back to the kernel:
//! linux/if_addr.h, rtnetlink.h, nexthop.h, fib_rules.h, neighbour.h, if_addrlabel.h.
//!
//! A message has no `struct nlmsghdr`. Of what the kernel tells it has only what can be asked for: no counters, no times,
//! nothing that follows from the rest.

use super::message::{KIND, Request, attribute, attributes, dump, flagged};
use nix::errno::Errno;

const INET: u8 = libc::AF_INET as u8;
const INET6: u8 = libc::AF_INET6 as u8;
const BRIDGE: u8 = libc::AF_BRIDGE as u8;

const CREATE: u16 = libc::NLM_F_CREATE as u16;
const APPEND: u16 = libc::NLM_F_APPEND as u16;
const REPLACE: u16 = libc::NLM_F_REPLACE as u16;

const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_F_TEMPORARY: u32 = 1;
const IFA_F_NODAD: u32 = 2;
const IFA_F_DADFAILED: u32 = 8;
/// IFA_F_NODAD, _HOMEADDRESS, _MANAGETEMPADDR, _NOPREFIXROUTE, _MCAUTOJOIN.
const ADDRESS_FLAGS: u32 = IFA_F_NODAD | 0x10 | 0x100 | 0x200 | 0x400;

const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_CACHEINFO: u16 = 12;
const RTA_VIA: u16 = 18;
const RTA_EXPIRES: u16 = 23;
const RTA_NH_ID: u16 = 30;
const RTM_F_CLONED: u32 = 0x200;
/// Of a hop, what is not the kernel's own state: RTNH_F_ONLINK.
const HOP_FLAGS: u32 = 4;

/// What one of several hops is made of: RTA_GATEWAY, _FLOW, _VIA.
const HOP: [u16; 3] = [RTA_GATEWAY, 11, RTA_VIA];

const FIB_RULE_INVERT: u32 = 2;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_MASTER: u16 = 9;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;
const NTF_MASTER: u8 = 4;
const NTF_PROXY: u8 = 8;
const NTF_EXT_LEARNED: u8 = 0x10;
const NTF_STICKY: u8 = 0x40;
const NTF_ROUTER: u8 = 0x80;

/// The tables of a network namespace, in an order in which they can be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Addresses of devices.
    Addresses,
    /// Which of several addresses is chosen (`ip addrlabel`).
    Labels,
    /// Next hops with numbers.
    NextHops,
    /// Routes of all tables.
    Routes,
    /// Which tables of routes are asked.
    Rules,
    /// Neighbours that were not found by asking.
    Neighbours,
    /// Addresses that are answered for.
    Proxies,
    /// Where bridges and tunnels send frames.
    Frames,
}

/// How messages of a table look.
struct Shape {
    /// The kind that asks; those before it make and unmake.
    get: u16,
    /// Bytes in front of the attributes.
    head: usize,
    /// Address families.
    families: &'static [u8],
    /// Attributes that are kept.
    kept: &'static [u16],
    /// Attributes that say nothing that can be asked for.
    passing: &'static [u16],
}

/// Why a message can't be given back to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// It has an attribute of this kind, which floe does not know.
    Attribute(u16),
    /// An address that the kernel made for privacy, or that another host has too.
    Address(&'static str),
    /// It is too short.
    Short,
}

/// An entry of a table, or one that can't be given back.
pub type Entry = Result<Vec<u8>, (Vec<u8>, Unfit)>;

impl Table {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Addresses,
        Self::Labels,
        Self::NextHops,
        Self::Routes,
        Self::Rules,
        Self::Neighbours,
        Self::Proxies,
        Self::Frames,
    ];

    fn shape(self) -> Shape {
        let (get, head, families, kept, passing): (_, _, &[u8], &[u16], &[u16]) = match self {
            // IFA_ADDRESS, _LOCAL, _LABEL, _BROADCAST, _ANYCAST, _RT_PRIORITY, _PROTO.
            Self::Addresses => (
                22,
                8,
                &[INET, INET6],
                &[1, 2, 3, 4, 5, IFA_CACHEINFO, IFA_FLAGS, 9, 11],
                &[],
            ),
            // IFAL_ADDRESS, _LABEL.
            Self::Labels => (74, 12, &[INET6], &[1, 2], &[]),
            // NHA_ID, _GROUP, _GROUP_TYPE, _BLACKHOLE, _OIF, _GATEWAY, _FDB; NHA_OP_FLAGS, _HW_STATS_*.
            Self::NextHops => (106, 8, &[0, INET, INET6], &[1, 2, 3, 4, 5, 6, 11], &[14, 16, 17]),
            // RTA_DST, _SRC, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _METRICS, _MULTIPATH, _FLOW, _TABLE, _VIA, _PREF.
            Self::Routes => (
                26,
                12,
                &[INET, INET6],
                &[
                    1,
                    2,
                    RTA_OIF,
                    RTA_GATEWAY,
                    6,
                    7,
                    8,
                    RTA_MULTIPATH,
                    11,
                    15,
                    RTA_VIA,
                    20,
                    RTA_EXPIRES,
                    RTA_NH_ID,
                ],
                &[RTA_CACHEINFO],
            ),
            // FRA_*: all but FRA_PAD, and those without a meaning.
            Self::Rules => (
                34,
                12,
                &[INET, INET6],
                &[
                    1, 2, 3, 4, 6, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29,
                ],
                &[18],
            ),
            // NDA_DST, _LLADDR, _PROTOCOL, _FLAGS_EXT; NDA_CACHEINFO, _PROBES.
            Self::Neighbours | Self::Proxies => (30, 12, &[INET, INET6], &[NDA_DST, NDA_LLADDR, 12, 15], &[3, 4]),
            // Also NDA_VLAN, _PORT, _VNI, _IFINDEX, _SRC_VNI, _NH_ID.
            Self::Frames => (
                30,
                12,
                &[BRIDGE],
                &[NDA_DST, NDA_LLADDR, 5, 6, 7, 8, 11, 12, 13, 15],
                &[3, 4, NDA_MASTER],
            ),
        };
        Shape {
            get,
            head,
            families,
            kept,
            passing,
        }
    }

    /// What the calling thread's network namespace has in it.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn entries(self) -> Result<Vec<Entry>, Errno> {
        let shape = self.shape();
        let mut request = vec![0; shape.head];
        match self {
            Self::Proxies => request[10] = NTF_PROXY,
            Self::Labels => request[0] = INET6,
            Self::Frames => request[0] = BRIDGE,
            _ => {}
        }
        let all = match dump(shape.get, &request) {
            // A kernel without it.
            Err(Errno::EOPNOTSUPP) => Vec::new(),
            all => all?,
        };
        let own = all
            .into_iter()
            .filter(|one| shape.families.contains(&one.first().copied().unwrap_or(u8::MAX)));
        Ok(own.filter_map(|one| self.entry(&one)).collect())
    }

    /// What is kept of a message of the kernel's; `None` of what the kernel finds out by itself.
    fn entry(self, told: &[u8]) -> Option<Entry> {
        let unfit = |why| Some(Err((told.to_vec(), why)));
        let shape = self.shape();
        let (Some(head), rest) = (told.get(..shape.head), told.get(shape.head..).unwrap_or_default()) else {
            return unfit(Unfit::Short);
        };
        let known = |kind: &u16| shape.kept.contains(kind) || shape.passing.contains(kind);
        if !self.is_lasting(head, rest) {
            return None;
        }
        if let Some((kind, _)) = attributes(rest).find(|(kind, _)| !known(kind)) {
            return unfit(Unfit::Attribute(kind));
        }
        if let (Self::Routes, Some((_, value))) = (self, attributes(rest).find(|(kind, _)| *kind == RTA_MULTIPATH)) {
            let inner = |hop: std::ops::Range<usize>| attributes(value.get(hop.start + 8..hop.end).unwrap_or_default());
            let mut all = each_hop(value).into_iter().flat_map(inner);
            if let Some((kind, _)) = all.find(|(kind, _)| !HOP.contains(kind)) {
                return unfit(Unfit::Attribute(kind));
            }
        }
        let flags = attributes(rest)
            .find(|(kind, _)| *kind == IFA_FLAGS)
            .and_then(|(_, value)| number(value, 0));
        if let (Self::Addresses, INET6, Some(flags)) = (self, head[0], flags) {
            if flags & IFA_F_TEMPORARY != 0 {
                return unfit(Unfit::Address("the kernel made it for a while, for privacy"));
            }
            if flags & IFA_F_DADFAILED != 0 {
                return unfit(Unfit::Address("another host has it, too"));
            }
        }
        Some(Ok(self.written(told)))
    }

    /// Whether the kernel does not make it by itself, when it is needed.
    fn is_lasting(self, head: &[u8], rest: &[u8]) -> bool {
        let of = |wanted| {
            attributes(rest)
                .find(|(kind, _)| *kind == wanted)
                .map(|(_, value)| value)
        };
        match self {
            Self::Routes => number(head, 8).is_some_and(|flags| flags & RTM_F_CLONED == 0),
            Self::Neighbours | Self::Frames => {
                let state = u16::from_ne_bytes([head[8], head[9]]);
                let flags = head[10];
                let hardware = of(NDA_LLADDR).unwrap_or_default();
                let is_group = hardware.first().is_some_and(|first| first & 1 != 0);
                if self == Self::Frames {
                    // What groups a device listens to is the business of protocols.
                    let listens = flags & NTF_SELF != 0 && is_group && of(NDA_DST).is_none();
                    return !listens
                        && (state & (NUD_PERMANENT | NUD_NOARP) != 0 || flags & (NTF_EXT_LEARNED | NTF_STICKY) != 0);
                }
                let is_nobody = hardware.iter().all(|byte| *byte == 0);
                state & NUD_PERMANENT != 0
                    || flags & NTF_EXT_LEARNED != 0
                    || state & NUD_NOARP != 0 && !is_group && !is_nobody
            }
            _ => true,
        }
    }

    /// A message that asks for what another one tells of, or asks for: each means the same. Attributes are in the order of
    /// their kinds.
    fn written(self, told: &[u8]) -> Vec<u8> {
        let shape = self.shape();
        let (mut head, rest) = (told[..shape.head].to_vec(), &told[shape.head..]);
        let of = |wanted| {
            attributes(rest)
                .find(|(kind, _)| *kind == wanted)
                .map(|(_, value)| value)
        };
        let mask = |head: &mut [u8], at: usize, kept: u32| {
            let masked = number(head, at).unwrap_or(0) & kept;
            head[at..at + 4].copy_from_slice(&masked.to_ne_bytes());
        };
        match self {
            // All are in an attribute.
            Self::Addresses => head[2] = 0,
            // A number of the kernel's own.
            Self::Labels => head[8..].fill(0),
            Self::NextHops => {
                head[1] = 0;
                mask(&mut head, 4, HOP_FLAGS);
            }
            Self::Routes => mask(&mut head, 8, HOP_FLAGS),
            Self::Rules => mask(&mut head, 8, FIB_RULE_INVERT),
            Self::Neighbours | Self::Proxies => {
                head[10] &= NTF_ROUTER | NTF_EXT_LEARNED | NTF_PROXY;
                head[11] = 0;
            }
            Self::Frames => {
                if let Some(master) = of(NDA_MASTER) {
                    head[10] |= if master == &head[4..8] { NTF_SELF } else { NTF_MASTER };
                }
                head[10] &= NTF_SELF | NTF_MASTER | NTF_EXT_LEARNED | NTF_STICKY | NTF_ROUTER;
                head[11] = 0;
            }
        }
        let has_number = self == Self::Routes && of(RTA_NH_ID).is_some();
        let mut kept: Vec<(u16, Vec<u8>)> = flagged(rest)
            .filter(|(kind, _)| shape.kept.contains(&(kind & KIND)))
            .filter(|(kind, _)| !has_number || !matches!(kind & KIND, RTA_OIF | RTA_GATEWAY | RTA_MULTIPATH | RTA_VIA))
            .map(|(kind, value)| (kind, self.value(kind & KIND, value)))
            .collect();
        // What is left of its time, in hundredths of seconds: struct rta_cacheinfo.
        let left = of(RTA_CACHEINFO).and_then(|value| number(value, 8)).unwrap_or(0);
        if self == Self::Routes && left != 0 && of(RTA_EXPIRES).is_none() {
            kept.push((RTA_EXPIRES, left.div_ceil(100).to_ne_bytes().to_vec()));
        }
        kept.sort_by_key(|(kind, _)| kind & KIND);
        for (kind, value) in kept {
            attribute(&mut head, kind, &value);
        }
        head
    }

    /// What is kept of an attribute.
    fn value(self, kind: u16, value: &[u8]) -> Vec<u8> {
        match (self, kind) {
            (Self::Addresses, IFA_FLAGS) => {
                let flags = number(value, 0).unwrap_or(0) & ADDRESS_FLAGS;
                flags.to_ne_bytes().to_vec()
            }
            // struct ifa_cacheinfo: how long it is preferred, and valid; when it was made and changed.
            (Self::Addresses, IFA_CACHEINFO) => {
                let mut times = value.to_vec();
                times.iter_mut().skip(8).for_each(|byte| *byte = 0);
                times
            }
            (Self::Routes, RTA_MULTIPATH) => hops(value),
            _ => value.to_vec(),
        }
    }

    /// What says whether two entries are the same one: all but the time that is left.
    #[must_use]
    pub fn identity(self, entry: &[u8]) -> Vec<u8> {
        const FOREVER: u32 = u32::MAX;
        let head = self.shape().head.min(entry.len());
        let mut all = entry[..head].to_vec();
        for (kind, value) in flagged(&entry[head..]) {
            let mut value = value.to_vec();
            match (self, kind & KIND) {
                (Self::Addresses, IFA_CACHEINFO) => {
                    for time in value.chunks_exact_mut(4).take(2) {
                        if number(time, 0) != Some(FOREVER) {
                            time.fill(0);
                        }
                    }
                }
                (Self::Routes, RTA_EXPIRES) => value.fill(0),
                _ => {}
            }
            attribute(&mut all, kind, &value);
        }
        all
    }

    /// Whether the kernel may have more in it at any time.
    #[must_use]
    pub fn may_grow(self) -> bool {
        self == Self::Neighbours
    }

    /// Whether it counts which of several is first even where one could be told from the other.
    #[must_use]
    pub fn is_ordered(self) -> bool {
        self == Self::Rules
    }

    /// Whether only the kernel can make an entry: a route of IPv6 that comes before all that are asked for.
    #[must_use]
    pub fn is_kernels(self, entry: &[u8]) -> bool {
        let (Self::Routes, Some(&INET6), Some(rest)) = (self, entry.first(), entry.get(self.shape().head..)) else {
            return false;
        };
        attributes(rest).any(|(kind, value)| kind == RTA_PRIORITY && value == [0; 4])
    }

    /// Puts in what an image has.
    ///
    /// # Errors
    /// EINVAL for what no kernel told; others of netlink.
    pub fn put(self, entry: &[u8]) -> Result<(), Errno> {
        let shape = self.shape();
        if entry.len() < shape.head || !shape.families.contains(&entry[0]) {
            return Err(Errno::EINVAL);
        }
        let body = self.written(entry);
        let make = |flags, body: &[u8]| Request::new(shape.get - 2, flags, body).perform();
        match self {
            Self::Addresses if entry[0] == INET6 => {
                // Nobody is asked whether it is theirs, as nobody was when the tree went on.
                let flags = attributes(&body[shape.head..]).find(|(kind, _)| *kind == IFA_FLAGS);
                let flags = flags.and_then(|(_, value)| number(value, 0)).unwrap_or(0);
                let mut quiet = body.clone();
                attribute(&mut quiet, IFA_FLAGS, &(flags | IFA_F_NODAD).to_ne_bytes());
                make(CREATE | libc::NLM_F_EXCL as u16, &quiet)?;
                if flags & IFA_F_NODAD == 0 {
                    make(REPLACE, &body)?;
                }
                Ok(())
            }
            Self::Routes | Self::Frames => make(CREATE | APPEND, &body),
            _ => make(CREATE, &body),
        }
    }

    /// Takes out what [`Table::entries`] told.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn remove(self, entry: &[u8]) -> Result<(), Errno> {
        Request::new(self.shape().get - 1, 0, entry).perform()
    }

    /// The numbers of the devices that an entry is about.
    #[must_use]
    pub fn devices(self, entry: &[u8]) -> Vec<u32> {
        let head = self.shape().head;
        let attribute = |wanted| {
            let all = attributes(entry.get(head..).unwrap_or_default());
            all.filter(move |(kind, _)| *kind == wanted).map(|(_, value)| value)
        };
        let mut found: Vec<u32> = match self {
            Self::Addresses | Self::Labels | Self::Neighbours | Self::Proxies | Self::Frames => {
                number(entry, 4).into_iter().collect()
            }
            Self::NextHops => attribute(5).filter_map(|value| number(value, 0)).collect(),
            Self::Routes => {
                let one = attribute(RTA_OIF).filter_map(|value| number(value, 0));
                one.chain(attribute(RTA_MULTIPATH).flat_map(devices_of_hops)).collect()
            }
            Self::Rules => Vec::new(),
        };
        found.retain(|index| *index != 0);
        found
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Several `struct rtnexthop`: length, flags (a byte), weight, device, each with its attributes.
fn each_hop(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + 8) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]])).max(8);
        found.push(at..(at + length).min(bytes.len()));
        at += length.next_multiple_of(4);
    }
    found
}

/// The same hops without the kernel's own state.
fn hops(bytes: &[u8]) -> Vec<u8> {
    let mut kept = bytes.to_vec();
    for hop in each_hop(bytes) {
        kept[hop.start + 2] &= HOP_FLAGS as u8;
    }
    kept
}

fn devices_of_hops(bytes: &[u8]) -> Vec<u32> {
    each_hop(bytes)
        .into_iter()
        .filter_map(|hop| number(bytes, hop.start + 4))
        .collect()
}
