//! Sets of ipset: what the kernel tells of them. It takes more than that: ranges, of which one element makes as many as they are long;
//! and attributes that are there twice, of which it heeds the last.

use super::{
    FilterFault, ensure,
    packet_filter::{HEAD, MOST_OF_ELEMENT, are_attributes},
};
use crate::record::IpSetRecord;

/// IPSET_ATTR_TYPENAME and IPSET_ATTR_DATA.
const TYPE: u16 = 3;
const DATA: u16 = 7;
/// Within the latter: IPSET_ATTR_HASHSIZE.
const HASH_SIZE: u16 = 18;
/// Of elements: IPSET_ATTR_IP_TO, PORT_TO and IP2_TO; and CIDR, of some types.
const RANGES: [u16; 3] = [2, 5, 22];
const CIDR: u16 = 3;
/// Types whose elements have that.
const OF_NETWORKS: &[u8] = b"hash:net";
/// NLA_TYPE_MASK.
const KIND: u16 = 0x3fff;

pub fn check(sets: &[IpSetRecord]) -> Result<(), FilterFault> {
    let mut free = 0;
    for set in sets {
        free = one(set, free)?;
    }
    Ok(())
}

/// How many numbers below the highest no set has.
pub fn missing(sets: &[IpSetRecord]) -> u64 {
    let used = sets.last().map_or(0, |last| u64::from(last.index) + 1);
    used.saturating_sub(sets.len() as u64)
}

/// The first number that one behind it can have.
fn one(set: &IpSetRecord, free: u32) -> Result<u32, FilterFault> {
    let fault = |fault| FilterFault::Set {
        index: set.index,
        fault,
    };
    ensure(u32::from(set.index) >= free && set.index != u16::MAX, || {
        fault("is not behind the one before it")
    })?;
    ensure(are_attributes(&set.attributes), || {
        fault("has no attributes of netlink")
    })?;
    let told = kinds(&set.attributes);
    let value = |wanted| told.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value);
    let data = value(DATA).unwrap_or_default();
    ensure(data.is_empty() || are_attributes(data), || {
        fault("has no attributes of netlink")
    })?;
    let options = kinds(data);
    ensure(are_distinct(&told) && are_distinct(&options), || {
        fault("has an attribute twice")
    })?;
    let whole = |(kind, value): &(u16, &[u8])| *kind != HASH_SIZE || value.len() == 4;
    ensure(options.iter().all(whole), || fault("has an impossible hashsize"))?;
    let has_networks = value(TYPE).unwrap_or_default().starts_with(OF_NETWORKS);
    set.elements.iter().try_for_each(|element| {
        let possible = element.len() <= MOST_OF_ELEMENT && are_attributes(element);
        ensure(possible, || fault("has an element without attributes of netlink"))?;
        let told = kinds(element);
        ensure(are_distinct(&told), || fault("has an element with an attribute twice"))?;
        let is_range = |kind: u16| RANGES.contains(&kind) || kind == CIDR && !has_networks;
        let single = !told.iter().any(|(kind, _)| is_range(*kind));
        ensure(single, || fault("has an element that is several"))
    })?;
    Ok(u32::from(set.index) + 1)
}

/// Kinds and values of attributes that are such.
fn kinds(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let [low, high, kind, flags, ..] = bytes {
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let value = bytes.get(HEAD..length).unwrap_or_default();
        found.push((u16::from_le_bytes([*kind, *flags]) & KIND, value));
        bytes = bytes.get(length.next_multiple_of(HEAD).max(HEAD)..).unwrap_or_default();
    }
    found
}

fn are_distinct(told: &[(u16, &[u8])]) -> bool {
    let mut kinds: Vec<u16> = told.iter().map(|(kind, _)| *kind).collect();
    kinds.sort_unstable();
    kinds.windows(2).all(|two| two[0] != two[1])
}
