//! Whether a packet filter can be made: it is made in network namespaces that no process is in, and compared.

use super::Filter;
use crate::ns::{inside::in_new_network, inside::run_in_as_owner, make_namespace};
use floe_image::record::{IpSetRecord, NamespaceContents};
use floe_sys::{
    netfilter::{
        legacy::{self, LegacyTable, is_carried},
        ruleset::{self, Table},
        sets::{self, Quiet, Set},
    },
    route,
};
use nix::errno::Errno;
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

/// What can't be made: object, reason, and what can be done about it on the source host.
pub(super) struct Obstacle {
    pub object: String,
    pub reason: String,
    pub advice: &'static str,
}

/// Bytes of memory at most that sets may take without elements: an image could ask for any.
const MOST_ROOM: u64 = 1 << 30;
const OTHER: &str = "made again it is another one";

/// The user namespace that a network namespace belongs to, where that is not floe's own: it decides which users rules can name.
pub(super) type Owner<'a> = Option<BorrowedFd<'a>>;

fn in_new<T: Send>(owner: Owner<'_>, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    match owner {
        Some(_) => {
            let made = make_namespace(&NamespaceContents::Network, owner, &[])?;
            run_in_as_owner(made.as_fd(), work)
        }
        None => in_new_network(work).map_err(io::Error::other),
    }
}

/// All that is in the way.
pub(super) fn obstacles(filter: &Filter, owner: Owner<'_>) -> Vec<Obstacle> {
    let mut found = of_sets(&filter.sets, owner);
    let sets = found.is_empty().then(|| bare(&filter.sets));
    found.extend(of_legacy(&filter.legacy, sets.as_deref(), owner));
    let tables = filter.tables.iter();
    found.extend(tables.filter_map(|table| {
        Some(Obstacle {
            object: title(table),
            reason: of_table(table, sets.as_deref(), owner)?,
            advice: "nft delete table, and make it again afterwards",
        })
    }));
    found
}

/// Why all sets of these packet filters can't be made, where they can't: some are made several times, as rules are taken only where
/// their sets are there.
pub(super) fn crowd(filters: &[Filter]) -> Option<&'static str> {
    let room = filters.iter().map(|filter| {
        let once = filter
            .sets
            .iter()
            .fold(0_u64, |sum, set| sum.saturating_add(set.room()));
        let naming = filter.tables.iter().filter(|table| name_sets(&table.extensions()));
        once.saturating_mul(naming.count() as u64 + 1 + u64::from(!filter.legacy.is_empty()))
    });
    let missing = filters.iter().map(|filter| {
        let used = filter.sets.last().map_or(0, |last| u64::from(last.index) + 1);
        used.saturating_sub(filter.sets.len() as u64)
    });
    if room.fold(0, u64::saturating_add) > MOST_ROOM {
        Some(
            "without any element, once for each table with rules that name sets, they take more than 1 GiB of the kernel's memory",
        )
    } else if missing.sum::<u64>() > IpSetRecord::MOST_MISSING {
        Some("between their numbers more than 1024 are missing")
    } else {
        None
    }
}

/// Whether rules with these matches and targets name sets of ipset.
fn name_sets(extensions: &[String]) -> bool {
    extensions.iter().any(|name| ["set", "SET"].contains(&name.as_str()))
}

/// Sets without elements: rules are taken where their sets are there.
fn bare(sets: &[Set]) -> Vec<Set> {
    let bare = |set: &Set| Set {
        elements: Vec::new(),
        ..set.clone()
    };
    sets.iter().map(bare).collect()
}

fn load_sets(sets: &[Set]) -> io::Result<()> {
    sets::load(sets).map_err(|(_, error)| error.into())
}

fn of_sets(sets: &[Set], owner: Owner<'_>) -> Vec<Obstacle> {
    let obstacle = |name: &str, reason: String| Obstacle {
        object: format!("packet filter: ipset {name}"),
        reason,
        advice: "ipset destroy, and make it again afterwards",
    };
    let unknown = sets.iter().filter(|set| !set.is_known());
    let mut found: Vec<_> = unknown
        .map(|set| obstacle(&set.name(), format!("sets of type {} are not carried", set.type_name())))
        .collect();
    if sets.is_empty() || !found.is_empty() {
        return found;
    }
    let made = in_new(owner, || match sets::load(sets) {
        Ok(()) => Ok(sets::differing(sets, &sets::read()?, Quiet::All).map(|name| (name, OTHER.to_owned()))),
        Err((name, error)) => Ok(Some((name, again(&error)))),
    });
    let made = made.unwrap_or_else(|error| Some((sets[0].name(), again(&io::Error::other(error)))));
    found.extend(made.map(|(name, reason)| obstacle(&name, reason)));
    found
}

fn again(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|cause| format!(": {cause}"));
    format!("it can't be made again: {error}{}", cause.unwrap_or_default())
}

fn of_legacy(tables: &[LegacyTable], sets: Option<&[Set]>, owner: Owner<'_>) -> Vec<Obstacle> {
    let obstacle = |title: String, reason: String| Obstacle {
        object: format!("packet filter: table {title}"),
        reason,
        advice: "delete the rules, and make them again afterwards; or use nft",
    };
    let title = |table: &LegacyTable| format!("{} of {}", table.name, table.program());
    let mut found = Vec::new();
    let mut rehearsed = Vec::new();
    for table in tables {
        match table.extensions() {
            None => found.push(obstacle(title(table), "it is none that x_tables could have".to_owned())),
            Some(names) => match names.iter().find(|name| !is_carried(name)) {
                Some(name) => found.push(obstacle(title(table), not_carried(name))),
                None if sets.is_some() || !name_sets(&names) => rehearsed.push(table.clone()),
                None => {}
            },
        }
    }
    if rehearsed.is_empty() {
        return found;
    }
    let made = in_new(owner, || {
        load_sets(sets.unwrap_or_default())?;
        let loaded = rehearsed.iter().map(|table| (table, legacy::load(table)));
        let failed = loaded.filter_map(|(table, loaded)| Some((title(table), refused(loaded.err()?))));
        let failed: Vec<_> = failed.collect();
        if !failed.is_empty() {
            return Ok(failed);
        }
        let differing = legacy::differing(&rehearsed, &legacy::read()?, true);
        Ok(differing.map(|title| (title, OTHER.to_owned())).into_iter().collect())
    });
    let made = made.unwrap_or_else(|error| vec![(title(&rehearsed[0]), again(&io::Error::other(error)))]);
    found.extend(made.into_iter().map(|(title, reason)| obstacle(title, reason)));
    found
}

/// What the kernel says to a table of x_tables.
fn refused(error: Errno) -> String {
    match error {
        Errno::ENOPROTOOPT => {
            "this kernel has no tables of that family (CONFIG_IP_NF_IPTABLES_LEGACY and its like)".to_owned()
        }
        Errno::ENOENT => {
            "this kernel has no such table, or has not all matches and targets that its rules have".to_owned()
        }
        error => again(&error),
    }
}

fn not_carried(name: &str) -> String {
    format!("it has a rule with {name}, of which the kernel does not tell all, or which floe does not know")
}

/// Why a table of nf_tables can't be made again, where it can't.
fn of_table(table: &Table, sets: Option<&[Set]>, owner: Owner<'_>) -> Option<String> {
    if table.has_owner() {
        return Some("it belongs to a process, with whose end it goes".to_owned());
    }
    let extensions = table.extensions();
    if let Some(name) = extensions.iter().find(|name| !is_carried(name)) {
        return Some(not_carried(name));
    }
    let sets = if name_sets(&extensions) { sets? } else { &[] };
    match rehearse(table, sets, owner) {
        Ok(None) => None,
        Ok(Some(_)) => Some(OTHER.to_owned()),
        Err(error) => Some(again(&error)),
    }
}

/// Makes a table in a network namespace of its own; what differs then.
fn rehearse(table: &Table, sets: &[Set], owner: Owner<'_>) -> io::Result<Option<String>> {
    let mut alone = table.clone();
    alone.handle = 1;
    let alone = [alone];
    let make = || -> io::Result<Option<String>> {
        for device in alone[0].devices().iter().filter(|device| *device != b"lo") {
            route::make_bridge(device)?;
        }
        load_sets(sets)?;
        ruleset::load(&alone)?;
        Ok(ruleset::differing(&alone, &ruleset::read()?, true))
    };
    in_new(owner, make)
}

fn title(table: &Table) -> String {
    format!("packet filter: table {} {}", table.family_name(), table.name())
}
