//! Sets of addresses, ports and the like that rules look into: ipset(8). What is told of them is kept as it is told, and told
//! back to the kernel. linux/netfilter/ipset/ip_set.h, net/netfilter/ipset/ip_set_core.c.
//!
//! The kernel numbers the sets of a network namespace, and rules of x_tables name them by these numbers. A new one gets the lowest
//! number that is free; so they are made in that order, with others in between for numbers that nothing has.

use super::{alone, answer_of, message::Message, open};
use crate::route::{attributes, flagged, netfilter};
use nix::errno::Errno;
use std::os::fd::OwnedFd;

const SUBSYSTEM: u16 = 6;
const CREATE: u16 = 2;
const DESTROY: u16 = 3;
const LIST: u16 = 7;
const ADD: u16 = 9;
/// IPSET_PROTOCOL: from this one on numbers are told.
const PROTOCOL: u8 = 7;
/// IPSET_ATTR_*.
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_DATA: u16 = 7;
const ATTR_ADT: u16 = 8;
const ATTR_LINENO: u16 = 9;
const ATTR_INDEX: u16 = 11;
/// Within IPSET_ATTR_DATA.
const ATTR_TIMEOUT: u16 = 6;
const ATTR_HASHSIZE: u16 = 18;
/// Of elements, where they are counted: IPSET_ATTR_BYTES and IPSET_ATTR_PACKETS.
const COUNTED: [u16; 2] = [24, 25];
/// What follows from what is in a set: IPSET_ATTR_ELEMENTS, REFERENCES and MEMSIZE.
const DERIVED: [u16; 3] = [24, 25, 26];
const NESTED: u16 = libc::NLA_F_NESTED as u16;
/// `struct nfgenmsg`.
const HEAD: usize = 4;
/// Bytes of elements in one message, of which an attribute is no longer than 64 KiB.
const ELEMENTS_BYTES: usize = 32 << 10;
/// The type in which the kernel has lists of other sets, with the least memory for one that is empty.
const SMALLEST: &str = "list:set";
/// Kinds of sets whose elements are told as they are added.
const TYPES: [&str; 16] = [
    "bitmap:ip",
    "bitmap:ip,mac",
    "bitmap:port",
    "hash:ip",
    "hash:ip,mac",
    "hash:ip,mark",
    "hash:ip,port",
    "hash:ip,port,ip",
    "hash:ip,port,net",
    "hash:mac",
    "hash:net",
    "hash:net,iface",
    "hash:net,net",
    "hash:net,port",
    "hash:net,port,net",
    "list:set",
];

/// A set with what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    /// Its number among those of the network namespace.
    pub index: u16,
    /// What it is: IPSET_ATTR_SETNAME, TYPENAME, REVISION, FAMILY, and DATA with its options.
    pub attributes: Vec<u8>,
    /// What its elements are: attributes of each.
    pub elements: Vec<Vec<u8>>,
}

/// What the kernel says against a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// A number of errno(3).
    #[error(transparent)]
    System(#[from] Errno),
    /// Nobody there who answers.
    #[error("this kernel has no ipset (CONFIG_IP_SET)")]
    Missing,
    /// IPSET_ERR_FIND_TYPE.
    #[error("this kernel has no sets of that type (CONFIG_IP_SET_*), or of another revision")]
    Type,
    /// Another number of ip_set.h.
    #[error("the kernel does not take it (error {0} of ipset)")]
    Refused(i32),
}

impl From<SetError> for std::io::Error {
    fn from(error: SetError) -> Self {
        match error {
            SetError::System(error) => error.into(),
            other => Self::other(other),
        }
    }
}

impl Set {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        text(&self.attributes, ATTR_SETNAME)
    }

    /// What elements it has, as `hash:ip`.
    #[must_use]
    pub fn type_name(&self) -> String {
        text(&self.attributes, ATTR_TYPENAME)
    }

    /// Whether floe knows that it is told as it is made.
    #[must_use]
    pub fn is_known(&self) -> bool {
        TYPES.contains(&self.type_name().as_str())
    }

    /// Bytes of memory at most that the kernel takes for it alone, without elements.
    #[must_use]
    pub fn room(&self) -> u64 {
        /// Of 65536 elements with all that there can be about each.
        const BITMAP: u64 = 4 << 20;
        const BUCKET: u64 = 16;
        match self.type_name().split(':').next() {
            Some("bitmap") => BITMAP,
            Some("hash") => {
                let size = value(self.options(), ATTR_HASHSIZE).and_then(|size| size.try_into().ok());
                // Without it it is a small one.
                let size = size.map_or(1024, u32::from_be_bytes);
                u64::from(size).next_power_of_two() * BUCKET
            }
            _ => 0,
        }
    }

    fn options(&self) -> &[u8] {
        value(&self.attributes, ATTR_DATA).unwrap_or_default()
    }

    /// Without what changes by itself: its size, and elements that go after a time; where packets may have come also what is
    /// counted, and elements that rules add and take away.
    fn steady(&self, quiet: Quiet) -> Self {
        let mut attributes = Vec::new();
        let mut message = Message::at_end_of(&mut attributes);
        for (kind, value) in flagged(&self.attributes) {
            match kind & !NESTED {
                ATTR_DATA => message.attribute(kind, &without(value, &[ATTR_HASHSIZE])),
                _ => message.attribute(kind, value),
            }
        }
        let is_lasting = |element: &&Vec<u8>| value(element, ATTR_TIMEOUT).is_none_or(|left| left == [0; 4]);
        let counted: &[u16] = if quiet == Quiet::All { &[] } else { &COUNTED };
        let elements = self.elements.iter().filter(is_lasting);
        let mut elements: Vec<_> = elements.map(|element| without(element, counted)).collect();
        if quiet == Quiet::No {
            elements.clear();
        }
        if self.type_name() != SMALLEST {
            elements.sort_unstable();
        }
        Self {
            index: self.index,
            attributes,
            elements,
        }
    }
}

/// How much of sets is the same whatever packets come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiet {
    /// No packet has come.
    All,
    /// Packets are counted, but don't change what is in sets.
    Elements,
    /// Rules put what they find into sets.
    No,
}

/// All sets of the calling thread's network namespace, in the order of their numbers; none where the kernel has no ipset.
///
/// # Errors
/// Those of netlink: EPERM without CAP_NET_ADMIN.
pub fn read() -> Result<Vec<Set>, Errno> {
    let told = match netfilter(SUBSYSTEM << 8 | LIST, &begin()) {
        // Not in this kernel.
        Err(Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EINVAL) => return Ok(Vec::new()),
        told => told?,
    };
    let mut sets: Vec<Set> = Vec::new();
    for answer in told {
        let all = answer.get(HEAD..).ok_or(Errno::EPROTO)?;
        // What does not fit comes in further messages, which say no more than the name.
        if value(all, ATTR_TYPENAME).is_some() {
            sets.push(Set {
                index: index(all)?,
                attributes: kept(all),
                elements: Vec::new(),
            });
        }
        let set = sets.iter_mut().rev();
        let set = set.into_iter().find(|set| set.name() == text(all, ATTR_SETNAME));
        let elements = attributes(value(all, ATTR_ADT).unwrap_or_default());
        let elements = elements.filter(|(kind, _)| *kind == ATTR_DATA);
        set.ok_or(Errno::EPROTO)?
            .elements
            .extend(elements.map(|(_, element)| without(element, &[])));
    }
    sets.sort_by_key(|set| set.index);
    Ok(sets)
}

fn index(all: &[u8]) -> Result<u16, Errno> {
    let index = value(all, ATTR_INDEX).and_then(|value| value.try_into().ok());
    index.map(u16::from_be_bytes).ok_or(Errno::EPROTO)
}

fn kept(all: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut message = Message::at_end_of(&mut bytes);
    for (kind, value) in flagged(all) {
        match kind & !NESTED {
            ATTR_SETNAME | ATTR_TYPENAME | ATTR_REVISION | ATTR_FAMILY => message.attribute(kind, value),
            ATTR_DATA => message.attribute(kind, &without(value, &DERIVED)),
            _ => {}
        }
    }
    bytes
}

/// Makes an empty set in the calling thread's network namespace: whether the kernel can.
///
/// # Errors
/// What the kernel says.
pub fn try_out() -> Result<(), SetError> {
    say(&open()?, CREATE, &smallest("floe-check"))
}

/// Makes these sets in the calling thread's network namespace, which has had none yet.
///
/// # Errors
/// Which one, and what the kernel says.
pub fn load(sets: &[Set]) -> Result<(), (String, SetError)> {
    if sets.is_empty() {
        return Ok(());
    }
    let socket = open().map_err(|error| ("sets".to_owned(), error.into()))?;
    let mut next = 0;
    let mut skipped = Vec::new();
    for set in sets {
        let of = |error| (set.name(), error);
        while next < set.index {
            let name = format!("floe-skipped-{next}");
            say(&socket, CREATE, &smallest(&name)).map_err(of)?;
            skipped.push(name);
            next += 1;
        }
        say(&socket, CREATE, &set.attributes).map_err(of)?;
        next = next.saturating_add(1);
    }
    for name in skipped {
        let destroyed = say(&socket, DESTROY, &named(&name));
        destroyed.map_err(|error| (name, error))?;
    }
    sets.iter()
        .try_for_each(|set| add(&socket, set).map_err(|error| (set.name(), error)))
}

/// Adds elements when all sets are there, as some are lists of others.
fn add(socket: &OwnedFd, set: &Set) -> Result<(), SetError> {
    let mut rest = &set.elements[..];
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |element: &&Vec<u8>| {
            bytes += element.len() + 8;
            bytes <= ELEMENTS_BYTES
        };
        let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        rest = later;
        let mut body = named(&set.name());
        let mut message = Message::at_end_of(&mut body);
        // It would be told there which one is bad.
        message.number(ATTR_LINENO, 0);
        message.nest(ATTR_ADT, |list| {
            now.iter()
                .for_each(|element| list.attribute(ATTR_DATA | NESTED, element));
        });
        say(socket, ADD, &body)?;
    }
    Ok(())
}

fn named(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    Message::at_end_of(&mut bytes).text(ATTR_SETNAME, name);
    bytes
}

fn smallest(name: &str) -> Vec<u8> {
    let mut bytes = named(name);
    let mut message = Message::at_end_of(&mut bytes);
    message.text(ATTR_TYPENAME, SMALLEST);
    message.attribute(ATTR_REVISION, &[0]);
    message.attribute(ATTR_FAMILY, &[0]);
    message.nest(ATTR_DATA, |_| {});
    bytes
}

/// `struct nfgenmsg` and IPSET_ATTR_PROTOCOL.
fn begin() -> Vec<u8> {
    let mut bytes = vec![0; HEAD];
    Message::at_end_of(&mut bytes).attribute(ATTR_PROTOCOL, &[PROTOCOL]);
    bytes
}

fn say(socket: &OwnedFd, command: u16, attributes: &[u8]) -> Result<(), SetError> {
    /// IPSET_ERR_PRIVATE, behind which its own numbers are.
    const PRIVATE: i32 = 4096;
    const FIND_TYPE: i32 = PRIVATE + 2;
    let body = [&begin(), attributes].concat();
    let bytes = alone(SUBSYSTEM << 8 | command, libc::NLM_F_EXCL as u16, &body);
    match answer_of(socket, &bytes)? {
        0 => Ok(()),
        FIND_TYPE => Err(SetError::Type),
        error if error > PRIVATE => Err(SetError::Refused(error)),
        // Of nfnetlink, where nobody is registered for such messages; those of ipset have numbers of their own.
        libc::EINVAL | libc::EOPNOTSUPP => Err(SetError::Missing),
        error => Err(Errno::from_raw(error).into()),
    }
}

/// The first of these sets that is not the same in both.
#[must_use]
pub fn differing(before: &[Set], now: &[Set], quiet: Quiet) -> Option<String> {
    let mut both = before.iter().zip(now);
    let differs = both.find(|(one, other)| one.steady(quiet) != other.steady(quiet));
    let (one, other) = (before.len(), now.len());
    differs
        .map(|(one, _)| one.name())
        .or_else(|| before.get(other).map(Set::name))
        .or_else(|| now.get(one).map(Set::name))
}

fn value(all: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(all)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

/// Without its NUL.
fn text(all: &[u8], wanted: u16) -> String {
    let text = value(all, wanted).unwrap_or_default();
    String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)).into_owned()
}

/// Attributes but these, with their flags. Addresses are in attributes within others: the kernel tells them without the flag that
/// they are in the order of the network, and wants it.
fn without(all: &[u8], dropped: &[u16]) -> Vec<u8> {
    const IN_ORDER: u16 = libc::NLA_F_NET_BYTEORDER as u16;
    let mut bytes = Vec::new();
    let mut message = Message::at_end_of(&mut bytes);
    for (kind, value) in flagged(all) {
        if dropped.contains(&(kind & !(NESTED | IN_ORDER))) {
            continue;
        }
        if kind & NESTED == 0 {
            message.attribute(kind, value);
        } else {
            message.nest(kind, |inner| {
                flagged(value).for_each(|(kind, value)| inner.attribute(kind | IN_ORDER, value));
            });
        }
    }
    bytes
}

#[cfg(test)]
mod tests;
