//! Packet filters, which the kernel can be told message by message, and what joins the tree's own network to the host's.

use super::{ensure, ip_sets};
use crate::{
    Image,
    record::{FilterTableRecord, IpSetRecord, LegacyTableRecord, NamespaceOrigin, PacketFilterRecord},
};

/// The most handles without anything: the kernel gives them one by one.
const MOST_SKIPPED: u64 = 1 << 20;
/// The addresses of networks that are joined to the host's.
const POOL: [u8; 2] = [10, 241];
/// Bytes before the value of an attribute of netlink.
pub(super) const HEAD: usize = 4;
/// Bytes of a message's attributes, by far.
const MOST: usize = 1 << 20;
/// An attribute says its length in 16 bits.
pub(super) const MOST_OF_ELEMENT: usize = 60_000;

/// A packet filter that can't have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterFault {
    /// Joined to the host's network, by an address that can't be.
    #[error("the network can't be joined to the host's by the address {0:?}")]
    Link([u8; 4]),
    /// A table that no kernel has.
    #[error("table {handle} of the packet filter {fault}")]
    Table {
        /// Its number.
        handle: u64,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// Handles.
    #[error("between the handles of the packet filter too many are missing")]
    Skipped,
    /// Numbers of sets.
    #[error("between the numbers of sets of the packet filters too many are missing")]
    Missing,
    /// A set of ipset that no kernel has.
    #[error("set {index} of the packet filter {fault}")]
    Set {
        /// Its number.
        index: u16,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A table of x_tables that no kernel has.
    #[error("table {name:?} of family {family} of the packet filter {fault}")]
    Legacy {
        /// Its family.
        family: u8,
        /// Its name.
        name: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A connection that no kernel tracks.
    #[error("tracked connection {0} has no attributes of netlink")]
    Connection(usize),
}

pub(super) fn check(image: &Image) -> Result<(), FilterFault> {
    let own = image.sandbox().net == NamespaceOrigin::Own;
    if let Some(link) = &image.sandbox().link {
        let [first, second, _, last] = link.address;
        let possible = own && [first, second] == POOL && last % 4 == 2;
        ensure(possible, || FilterFault::Link(link.address))?;
    }
    let missing = image
        .networks()
        .iter()
        .map(|network| ip_sets::missing(&network.filter.sets));
    ensure(missing.sum::<u64>() <= IpSetRecord::MOST_MISSING, || {
        FilterFault::Missing
    })?;
    image.networks().iter().try_for_each(|network| one(&network.filter))
}

fn one(record: &PacketFilterRecord) -> Result<(), FilterFault> {
    let (mut last, mut skipped) = (0, 0_u64);
    for table in &record.tables {
        ensure(table.handle > last, || FilterFault::Table {
            handle: table.handle,
            fault: "is not behind the one before it",
        })?;
        skipped = skipped.saturating_add(table.handle - last - 1);
        skipped = skipped.saturating_add(check_table(table)?);
        last = table.handle;
    }
    ensure(skipped <= MOST_SKIPPED, || FilterFault::Skipped)?;
    ip_sets::check(&record.sets)?;
    for (place, table) in record.legacy.iter().enumerate() {
        check_legacy(table, &record.legacy[..place])?;
    }
    let bad = record
        .connections
        .iter()
        .position(|connection| !are_attributes(&connection.attributes));
    bad.map_or(Ok(()), |index| Err(FilterFault::Connection(index)))
}

fn check_legacy(table: &LegacyTableRecord, before: &[LegacyTableRecord]) -> Result<(), FilterFault> {
    let fault = |fault| FilterFault::Legacy {
        family: table.family,
        name: table.name.clone(),
        fault,
    };
    let is_same = |other: &LegacyTableRecord| (other.family, &other.name) == (table.family, &table.name);
    ensure(!before.iter().any(is_same), || fault("is there twice"))?;
    let hooks = match table.family {
        2 | 10 => 5,
        3 => 3,
        _ => 0,
    };
    let possible = hooks > 0 && [&table.begins, &table.ends].iter().all(|all| all.len() == hooks);
    ensure(possible, || fault("has impossible hooks"))?;
    let whole = !table.entries.is_empty() && table.entries.len().is_multiple_of(8);
    ensure(whole, || fault("has no whole entries"))
}

/// How many handles it lacks.
fn check_table(table: &FilterTableRecord) -> Result<u64, FilterFault> {
    let fault = |fault| FilterFault::Table {
        handle: table.handle,
        fault,
    };
    ensure(are_attributes(&table.attributes), || {
        fault("has no attributes of netlink")
    })?;
    let mut handles = Vec::with_capacity(table.parts.len());
    for part in &table.parts {
        handles.push(part.handle);
        ensure(are_attributes(&part.attributes), || {
            fault("has a part without attributes of netlink")
        })?;
        let elements = &part.elements;
        let possible = |element: &Vec<u8>| element.len() <= MOST_OF_ELEMENT && are_attributes(element);
        ensure(elements.iter().all(possible), || {
            fault("has an element without attributes of netlink")
        })?;
    }
    handles.sort_unstable();
    let distinct = handles.windows(2).all(|two| two[0] < two[1]);
    ensure(distinct && handles.first() != Some(&0), || {
        fault("has parts with impossible handles")
    })?;
    Ok(handles.last().map_or(0, |last| last - handles.len() as u64))
}

/// Whether the bytes are attributes, each as long as it says, up to the end.
pub(super) fn are_attributes(mut bytes: &[u8]) -> bool {
    if bytes.is_empty() || bytes.len() > MOST {
        return false;
    }
    while let Some(head) = bytes.get(..HEAD) {
        let length = usize::from(u16::from_le_bytes([head[0], head[1]]));
        match bytes.get(length.next_multiple_of(HEAD)..) {
            Some(behind) if length >= HEAD => bytes = behind,
            _ => return false,
        }
    }
    bytes.is_empty()
}
