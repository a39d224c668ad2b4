//! The packet filter of a network namespace: the rules of nf_tables, as nft(8) and iptables-nft(8) make them, those of x_tables, as
//! iptables-legacy(8) does, the sets of ipset(8) that rules look into, and the connections that it tracks. What else filters there,
//! floe refuses by name.
//!
//! Whether it can be made again is tried when it is saved: in a network namespace that no process is in.

mod records;
mod rehearse;

use super::{
    NetworkSpace, contents,
    inside::{NsError, run_in_as_owner},
};
use crate::file::is_lasting_hold;
use crate::refusal::Refusals;
use floe_image::record::{NamespaceContents, NamespaceRecord, NetworkRecord, PacketFilterRecord};
use floe_sys::{
    namespace::owner,
    netfilter::{
        self,
        legacy::{self, LegacyTable},
        ruleset::{self, Table},
        sets::{self, Quiet, Set},
        tracking::{self, Tracked},
    },
};
use nix::sys::stat::fstat;
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

/// How findings name all of them.
const SETS: &str = "packet filter: sets of ipset";
/// How often what changes meanwhile is read anew.
const ATTEMPTS: usize = 20;

/// What filters in a network namespace, as the kernel is told it.
#[derive(Debug, Clone, Default)]
struct Filter {
    tables: Vec<Table>,
    legacy: Vec<LegacyTable>,
    sets: Vec<Set>,
    connections: Vec<Tracked>,
}

/// What is found in one.
struct Found {
    filter: Filter,
    /// Tracked connections of which more is known than is told.
    helped: usize,
    /// Lists of addresses that rules fill (xt_recent).
    recent: Vec<String>,
    /// Objects of other parts of netfilter.
    others: Vec<&'static str>,
}

/// Reads the packet filter of a network namespace.
///
/// # Errors
/// [`NsError`].
pub fn dump(
    space: &NetworkSpace,
    owner: Option<BorrowedFd<'_>>,
    refusals: &mut Refusals,
) -> Result<PacketFilterRecord, NsError> {
    let found = space.run(look)?;
    let mut refuse = |object: String, reason: &str, advice: &'static str| {
        refusals.add(
            None,
            space.title(format!("packet filter: {object}")),
            reason.to_owned(),
            advice,
        );
    };
    if found.helped > 0 {
        refuse(
            "tracked connections with helpers or expectations".to_owned(),
            "more is known of them than the kernel tells",
            "end them, or conntrack -F",
        );
    }
    for name in &found.recent {
        refuse(
            format!("list {name} of recent addresses (iptables -m recent)"),
            "when they were seen can't be told back",
            "echo / > /proc/net/xt_recent/NAME",
        );
    }
    for object in &found.others {
        refuse((*object).to_owned(), "they are not carried", "delete them");
    }
    for name in found.filter.unordered() {
        refuse(
            format!("table {name}"),
            "it translates addresses at the same hook and priority as another one, and which comes first is not known",
            "give its chains another priority",
        );
    }
    // All together are refused then.
    if rehearse::crowd(std::slice::from_ref(&found.filter)).is_some() {
        return Ok(found.filter.into());
    }
    for obstacle in rehearse::obstacles(&found.filter, owner) {
        refusals.add(None, space.title(obstacle.object), obstacle.reason, obstacle.advice);
    }
    Ok(found.filter.into())
}

fn look() -> io::Result<Found> {
    let tracking = unchanging(tracking::read)?;
    Ok(Found {
        filter: Filter {
            connections: tracking.connections,
            ..rules()?
        },
        helped: tracking.helped,
        recent: recent()?,
        others: netfilter::others()?,
    })
}

/// Rules and sets of the calling thread's network namespace.
fn rules() -> io::Result<Filter> {
    let tables = unchanging(ruleset::read)?;
    Ok(Filter {
        tables: tables.into_iter().filter(|table| !is_floes(table)).collect(),
        legacy: unchanging(legacy::read)?,
        sets: sets::read()?,
        connections: Vec::new(),
    })
}

/// The tables of the namespace may be changed from outside, too: of nf_tables the kernel says EINTR then, of x_tables EAGAIN.
fn unchanging<T, E: Into<io::Error>>(read: impl Fn() -> Result<T, E>) -> io::Result<T> {
    let is_other = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN));
    let mut result = read().map_err(E::into);
    for _ in 1..ATTEMPTS {
        if !result.as_ref().is_err_and(is_other) {
            break;
        }
        result = read().map_err(E::into);
    }
    result
}

/// Whether packets are held back by it: by this process, or for a tree that was saved in this namespace and is away.
fn is_floes(table: &Table) -> bool {
    let name = table.name();
    match table.has_owner() {
        true => name.starts_with("floe-") && name.ends_with(&format!("-{}", std::process::id())),
        false => is_lasting_hold(&name),
    }
}

/// Lists of addresses that have some in them.
fn recent() -> io::Result<Vec<String>> {
    let folder = match fs::read_dir("/proc/thread-self/net/xt_recent") {
        // Not in this kernel.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        folder => folder?,
    };
    let mut found = Vec::new();
    for list in folder {
        let list = list?;
        if !fs::read(list.path())?.is_empty() {
            found.push(list.file_name().to_string_lossy().into_owned());
        }
    }
    found.sort();
    Ok(found)
}

/// What a packet filter consists of, a line each.
#[must_use]
pub fn titles(record: &PacketFilterRecord) -> Vec<String> {
    let filter = Filter::from(record);
    let tables = filter.tables.iter();
    let tables = tables.map(|table| format!("table {} {}", table.family_name(), table.name()));
    let legacy = filter.legacy.iter();
    let legacy = legacy.map(|table| format!("table {} of {}", table.name, table.program()));
    let sets = filter.sets.iter();
    let sets = sets.map(|set| {
        format!(
            "ipset {} ({}, {} elements)",
            set.name(),
            set.type_name(),
            set.elements.len()
        )
    });
    tables.chain(legacy).chain(sets).collect()
}

/// What stands in the way of making the packet filters of networks on this host: object and reason.
#[must_use]
pub fn obstacles(records: &[NetworkRecord], namespaces: &[NamespaceRecord]) -> Vec<(String, String)> {
    let filters: Vec<Filter> = records.iter().map(|record| Filter::from(&record.filter)).collect();
    if let Some(reason) = rehearse::crowd(&filters) {
        return vec![(SETS.to_owned(), reason.to_owned())];
    }
    let owners = match owners(records, namespaces) {
        Ok(owners) => owners,
        Err(error) => {
            return vec![(
                "packet filter".to_owned(),
                format!("who owns it can't be made: {error}"),
            )];
        }
    };
    let owner = |record: &NetworkRecord| owners.get(&record.namespace).map(AsFd::as_fd);
    let both = filters.iter().zip(records);
    let found = both.flat_map(|(filter, record)| rehearse::obstacles(filter, owner(record)));
    found.map(|one| (one.object, one.reason)).collect()
}

/// User namespaces like those that networks with packet filters belong to, where that is not the sandbox's.
fn owners(records: &[NetworkRecord], namespaces: &[NamespaceRecord]) -> io::Result<HashMap<u32, OwnedFd>> {
    let filters = |record: &&NetworkRecord| record.namespace != 0 && record.filter != PacketFilterRecord::default();
    if !records.iter().any(|record| filters(&record)) {
        return Ok(HashMap::new());
    }
    let made = contents::rehearse(namespaces, |_, contents| *contents == NamespaceContents::Network)?;
    let own = fs::metadata("/proc/self/ns/user")?.ino();
    let mut owners = HashMap::new();
    for record in records.iter().filter(filters) {
        let Some(network) = made.get(&record.namespace) else {
            continue;
        };
        let owner = owner(network.as_fd())?;
        if fstat(&owner)?.st_ino != own {
            owners.insert(record.namespace, owner);
        }
    }
    Ok(owners)
}

/// Refuses sets that can't all be made.
pub fn refuse_crowd<'a>(records: impl Iterator<Item = &'a PacketFilterRecord>, refusals: &mut Refusals) {
    let filters: Vec<Filter> = records.map(Filter::from).collect();
    if let Some(reason) = rehearse::crowd(&filters) {
        refusals.add(None, SETS.to_owned(), reason, "ipset destroy some");
    }
}

/// Makes a packet filter in a network namespace, before any packet comes. Rules find the sets that they name.
///
/// # Errors
/// Those of setns(2), of netlink and of setsockopt(2).
pub fn restore(namespace: BorrowedFd<'_>, record: &PacketFilterRecord) -> io::Result<()> {
    if *record == PacketFilterRecord::default() {
        return Ok(());
    }
    let filter = Filter::from(record);
    run_in_as_owner(namespace, || {
        sets::load(&filter.sets).map_err(|(_, error)| error)?;
        for table in &filter.legacy {
            legacy::load(table)?;
        }
        ruleset::load(&filter.tables)?;
        Ok(tracking::load(&filter.connections)?)
    })
}

/// What is another one than the image has.
///
/// # Errors
/// Those of setns(2), of netlink and of getsockopt(2).
pub fn compare(namespace: BorrowedFd<'_>, record: &PacketFilterRecord) -> io::Result<Option<String>> {
    let wanted = Filter::from(record);
    if wanted.tables.is_empty() && wanted.legacy.is_empty() && wanted.sets.is_empty() {
        return Ok(None);
    }
    let now = run_in_as_owner(namespace, rules)?;
    let quiet = if wanted.feeds_sets() {
        Quiet::No
    } else {
        Quiet::Elements
    };
    let differing = ruleset::differing(&wanted.tables, &now.tables, false);
    let differing = differing.or_else(|| legacy::differing(&wanted.legacy, &now.legacy, false));
    let set = sets::differing(&wanted.sets, &now.sets, quiet);
    Ok(differing
        .map(|table| format!("packet filter: table {table}"))
        .or_else(|| set.map(|set| format!("packet filter: ipset {set}"))))
}

impl Filter {
    /// Tables that translate addresses where one before them does. The one that was hooked last comes first, and when that was is told
    /// nowhere.
    fn unordered(&self) -> Vec<String> {
        let legacy = self.legacy.iter();
        let legacy = legacy.map(|table| (format!("{} of {}", table.name, table.program()), table.translating()));
        let tables = self.tables.iter();
        let tables = tables.map(|table| (format!("{} {}", table.family_name(), table.name()), table.translating()));
        let mut before = HashSet::new();
        let mut found = Vec::new();
        for (name, places) in legacy.chain(tables) {
            if places.iter().any(|place| before.contains(place)) {
                found.push(name);
            }
            before.extend(places);
        }
        found
    }

    /// Whether rules put what they find into sets of ipset.
    fn feeds_sets(&self) -> bool {
        let legacy = self.legacy.iter().filter_map(LegacyTable::extensions);
        let mut all = legacy.chain(self.tables.iter().map(Table::extensions)).flatten();
        all.any(|name| name == "SET")
    }
}
