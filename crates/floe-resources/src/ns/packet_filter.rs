//! The packet filter of a network namespace: the rules of nf_tables, as nft(8) and iptables-nft(8) make them, and the
//! connections that it tracks. What else filters there, floe refuses by name.
//!
//! Whether rules can be made again is tried when they are saved: in a network namespace that no process is in.

use super::{
    NetworkSpace,
    inside::{NsError, in_new_network, run_in},
};
use crate::refusal::Refusals;
use floe_image::record::{FilterPartKind, FilterPartRecord, FilterTableRecord, PacketFilterRecord, TrackedRecord};
use floe_sys::{
    netfilter::{
        self,
        ruleset::{self, Part, PartKind, Table},
        tracking::{self, Tracked},
    },
    route,
};
use nix::errno::Errno;
use std::{io, os::fd::BorrowedFd};

/// How often what changes meanwhile is read anew.
const ATTEMPTS: usize = 20;
/// Lists of the tables of x_tables that a network namespace has, and who makes them.
const LEGACY: [(&str, &str); 3] = [
    ("ip_tables_names", "iptables-legacy"),
    ("ip6_tables_names", "ip6tables-legacy"),
    ("arp_tables_names", "arptables-legacy"),
];

/// What filters in a network namespace.
struct Found {
    tables: Vec<Table>,
    tracking: tracking::Tracking,
    /// Tables of x_tables.
    legacy: Vec<String>,
    /// Names of ipsets.
    sets: Vec<String>,
}

/// Reads the packet filter of a network namespace.
///
/// # Errors
/// [`NsError`].
pub fn dump(space: &NetworkSpace, refusals: &mut Refusals) -> Result<PacketFilterRecord, NsError> {
    let found = space.run(look)?;
    for name in &found.legacy {
        refusals.add(
            None,
            space.title(format!("packet filter: {name}")),
            "rules of x_tables are not carried",
            "use nft or iptables-nft",
        );
    }
    for name in &found.sets {
        refusals.add(
            None,
            space.title(format!("packet filter: ipset {name}")),
            "sets of ipset(8) are not carried",
            "use sets of nft",
        );
    }
    if found.tracking.helped > 0 {
        refusals.add(
            None,
            space.title("packet filter: tracked connections with helpers or expectations"),
            "more is known of them than the kernel tells",
            "end them, or conntrack -F",
        );
    }
    for table in &found.tables {
        if let Some(reason) = obstacle(table) {
            refusals.add(
                None,
                space.title(title(table)),
                reason,
                "nft delete table, and make it again afterwards",
            );
        }
    }
    Ok(PacketFilterRecord {
        tables: found.tables.into_iter().map(table_record).collect(),
        connections: found.tracking.connections.into_iter().map(tracked_record).collect(),
    })
}

fn look() -> io::Result<Found> {
    let tables = unchanging(ruleset::read)?;
    Ok(Found {
        tables: tables.into_iter().filter(|table| !is_floes(table)).collect(),
        tracking: unchanging(tracking::read)?,
        legacy: legacy()?,
        sets: netfilter::ipsets()?,
    })
}

/// The tables of the namespace may be changed from outside, too.
fn unchanging<T>(read: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
    let mut result = read();
    for _ in 1..ATTEMPTS {
        if !matches!(result, Err(Errno::EINTR)) {
            break;
        }
        result = read();
    }
    result
}

/// Whether this process holds packets back by it.
fn is_floes(table: &Table) -> bool {
    let name = table.name();
    table.has_owner() && name.starts_with("floe-") && name.ends_with(&format!("-{}", std::process::id()))
}

fn legacy() -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for (file, program) in LEGACY {
        match std::fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            Ok(text) => found.extend(text.lines().map(|table| format!("table {table} of {program}"))),
            // Not in this kernel.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Made together with its user namespace (clone(2)), before that knew any user: the list is the host's root's then.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Why a table can't be made again, where it can't.
fn obstacle(table: &Table) -> Option<String> {
    if table.has_owner() {
        return Some("it belongs to a process, with whose end it goes".to_owned());
    }
    match rehearse(table) {
        Ok(None) => None,
        Ok(Some(_)) => Some("made again it is another one".to_owned()),
        Err(error) => Some(format!("it can't be made again: {error}")),
    }
}

/// Makes a table in a network namespace of its own; what differs then.
fn rehearse(table: &Table) -> io::Result<Option<String>> {
    let mut alone = table.clone();
    alone.handle = 1;
    let alone = [alone];
    let make = || -> io::Result<Option<String>> {
        for device in alone[0].devices().iter().filter(|device| *device != b"lo") {
            route::make_bridge(device)?;
        }
        ruleset::load(&alone)?;
        Ok(ruleset::differing(&alone, &ruleset::read()?, true))
    };
    in_new_network(make).map_err(io::Error::other)
}

/// What stands in the way of making a packet filter on this host: object and reason.
#[must_use]
pub fn obstacles(record: &PacketFilterRecord) -> Vec<(String, String)> {
    let tables = tables(record);
    let found = tables.iter().filter_map(|table| Some((title(table), obstacle(table)?)));
    found.collect()
}

fn title(table: &Table) -> String {
    format!("packet filter: table {} {}", table.family_name(), table.name())
}

/// Makes a packet filter in a network namespace, before any packet comes.
///
/// # Errors
/// Those of setns(2) and of netlink.
pub fn restore(namespace: BorrowedFd<'_>, record: &PacketFilterRecord) -> io::Result<()> {
    if *record == PacketFilterRecord::default() {
        return Ok(());
    }
    run_in(namespace, || {
        ruleset::load(&tables(record))?;
        let connections: Vec<Tracked> = record.connections.iter().map(tracked).collect();
        Ok(tracking::load(&connections)?)
    })
}

/// The first table that is another one than the image has.
///
/// # Errors
/// Those of setns(2) and of netlink.
pub fn compare(namespace: BorrowedFd<'_>, record: &PacketFilterRecord) -> io::Result<Option<String>> {
    if record.tables.is_empty() {
        return Ok(None);
    }
    run_in(namespace, || {
        let now = unchanging(ruleset::read)?;
        let now: Vec<Table> = now.into_iter().filter(|table| !is_floes(table)).collect();
        let differing = ruleset::differing(&tables(record), &now, false);
        Ok(differing.map(|table| format!("packet filter: table {table}")))
    })
}

/// Kinds as the kernel's and as the image's.
const KINDS: [(PartKind, FilterPartKind); 5] = [
    (PartKind::Chain, FilterPartKind::Chain),
    (PartKind::Object, FilterPartKind::Object),
    (PartKind::Set, FilterPartKind::Set),
    (PartKind::Flowtable, FilterPartKind::Flowtable),
    (PartKind::Rule, FilterPartKind::Rule),
];

fn table_record(table: Table) -> FilterTableRecord {
    let kind = |kind| {
        let pair = KINDS.iter().find(|(one, _)| *one == kind);
        pair.expect("the list has all kinds").1
    };
    let part = |part: Part| FilterPartRecord {
        kind: kind(part.kind),
        handle: part.handle,
        attributes: part.attributes,
        elements: part.elements,
    };
    FilterTableRecord {
        family: table.family,
        handle: table.handle,
        attributes: table.attributes,
        parts: table.parts.into_iter().map(part).collect(),
    }
}

fn tables(record: &PacketFilterRecord) -> Vec<Table> {
    let kind = |kind| {
        let pair = KINDS.iter().find(|(_, one)| *one == kind);
        pair.expect("the list has all kinds").0
    };
    let part = |part: &FilterPartRecord| Part {
        kind: kind(part.kind),
        handle: part.handle,
        attributes: part.attributes.clone(),
        elements: part.elements.clone(),
    };
    let table = |table: &FilterTableRecord| Table {
        family: table.family,
        handle: table.handle,
        attributes: table.attributes.clone(),
        parts: table.parts.iter().map(part).collect(),
    };
    record.tables.iter().map(table).collect()
}

fn tracked_record(tracked: Tracked) -> TrackedRecord {
    TrackedRecord {
        family: tracked.family,
        attributes: tracked.attributes,
    }
}

fn tracked(record: &TrackedRecord) -> Tracked {
    Tracked {
        family: record.family,
        attributes: record.attributes.clone(),
    }
}
