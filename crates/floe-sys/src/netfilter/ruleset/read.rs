//! Reads all tables of a network namespace.

use super::{
    LAYOUTS, Layout, Part, PartKind, Table,
    expressions::{compatibility, extensions, steady},
    text, value, word,
};
use crate::{
    netfilter::message::*,
    route::{attributes, netfilter},
};
use nix::errno::Errno;

/// NFTA_TABLE_HANDLE, NAME, FLAGS and USERDATA.
const TABLE_HANDLE: u16 = 4;
const TABLE_KEPT: [u16; 3] = [NFTA_TABLE_NAME, NFTA_TABLE_FLAGS, 6];
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_GETSETELEM: u16 = 13;
/// `struct nfgenmsg`.
const HEAD: usize = 4;

impl Table {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        String::from_utf8_lossy(text(&self.attributes, NFTA_TABLE_NAME).unwrap_or_default()).into_owned()
    }

    /// The family of its packets, as nft(8) names it.
    #[must_use]
    pub fn family_name(&self) -> &'static str {
        match self.family {
            1 => "inet",
            2 => "ip",
            3 => "arp",
            5 => "netdev",
            7 => "bridge",
            10 => "ip6",
            _ => "unknown",
        }
    }

    /// Whether it goes when the process ends that made it.
    #[must_use]
    pub fn has_owner(&self) -> bool {
        word(&self.attributes, NFTA_TABLE_FLAGS).is_some_and(|flags| flags & NFT_TABLE_F_OWNER != 0)
    }

    /// Names of what it takes from x_tables, as tables of iptables-nft(8) do.
    #[must_use]
    pub fn extensions(&self) -> Vec<String> {
        extensions(self)
    }

    /// Where its chains with rules translate addresses: family of packets, hook and priority.
    #[must_use]
    pub fn translating(&self) -> Vec<(u8, u32, u32)> {
        /// NFTA_CHAIN_NAME and TYPE, NFTA_RULE_CHAIN.
        const NAME: u16 = 3;
        const TYPE: u16 = 7;
        const OF_CHAIN: u16 = 2;
        const INET: u8 = 1;
        let families = if self.family == INET {
            vec![2, 10]
        } else {
            vec![self.family]
        };
        let of_kind = |kind| self.parts.iter().filter(move |part| part.kind == kind);
        let has_rules = |chain: &Part| {
            let name = text(&chain.attributes, NAME);
            of_kind(PartKind::Rule).any(|rule| text(&rule.attributes, OF_CHAIN) == name)
        };
        let chains = of_kind(PartKind::Chain).filter(|chain| text(&chain.attributes, TYPE) == Some(b"nat"));
        let places = chains.filter(|chain| has_rules(chain)).filter_map(|chain| {
            let hook = value(&chain.attributes, NFTA_CHAIN_HOOK)?;
            Some((word(hook, NFTA_HOOK_HOOKNUM)?, word(hook, NFTA_HOOK_PRIORITY)?))
        });
        places
            .flat_map(|(hook, priority)| families.iter().map(move |family| (*family, hook, priority)))
            .collect()
    }

    /// Names of the network devices that it is hooked to.
    #[must_use]
    pub fn devices(&self) -> Vec<Vec<u8>> {
        /// NFTA_HOOK_DEV, NFTA_HOOK_DEVS, NFTA_DEVICE_NAME; NFTA_FLOWTABLE_HOOK and its _DEVS.
        const HOOK: (u16, u16, u16) = (NFTA_CHAIN_HOOK, 3, 4);
        const FLOW: (u16, u16) = (3, 3);
        let mut found = Vec::new();
        for part in &self.parts {
            let (hook, lists) = match part.kind {
                PartKind::Chain => (value(&part.attributes, HOOK.0), HOOK.2),
                PartKind::Flowtable => (value(&part.attributes, FLOW.0), FLOW.1),
                _ => continue,
            };
            let hook = hook.unwrap_or_default();
            let list = value(hook, lists).unwrap_or_default();
            let named = attributes(list).map(|(_, name)| name.strip_suffix(&[0]).unwrap_or(name).to_vec());
            found.extend(named);
            if part.kind == PartKind::Chain {
                found.extend(text(hook, HOOK.1).map(<[u8]>::to_vec));
            }
        }
        found.sort();
        found.dedup();
        found
    }
}

/// All tables of the calling thread's network namespace, in the order of their handles; none where the kernel has no
/// nf_tables.
///
/// # Errors
/// Those of netlink: EINTR where they change meanwhile, EPERM without CAP_NET_ADMIN.
pub fn read() -> Result<Vec<Table>, Errno> {
    let mut tables = Vec::new();
    let told = match ask(NFT_MSG_GETTABLE, 0, &[]) {
        Err(Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EINVAL) => return Ok(tables),
        told => told?,
    };
    for (family, all) in told {
        tables.push(Table {
            family,
            handle: handle(&all, TABLE_HANDLE)?,
            attributes: kept(&all, &TABLE_KEPT),
            parts: Vec::new(),
        });
    }
    if !tables.is_empty() {
        for layout in &LAYOUTS {
            read_kind(layout, &mut tables)?;
        }
    }
    tables.sort_by_key(|table| table.handle);
    Ok(tables)
}

fn read_kind(layout: &Layout, tables: &mut [Table]) -> Result<(), Errno> {
    for (family, all) in ask(layout.get, 0, &[])? {
        let mut attributes = kept(&all, layout.kept);
        let mut elements = Vec::new();
        match layout.kind {
            PartKind::Set => elements = read_elements(family, &attributes)?,
            PartKind::Rule => attributes.extend(compatibility(&attributes).unwrap_or_default()),
            PartKind::Chain | PartKind::Object | PartKind::Flowtable => {}
        }
        let part = Part {
            kind: layout.kind,
            handle: handle(&all, layout.handle)?,
            attributes,
            elements,
        };
        // All have the name of their table in the same attribute.
        let name = text(&all, NFTA_TABLE_NAME);
        let table = tables
            .iter_mut()
            .find(|table| table.family == family && text(&table.attributes, NFTA_TABLE_NAME) == name);
        table.ok_or(Errno::EINTR)?.parts.push(part);
    }
    Ok(())
}

fn read_elements(family: u8, set: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
    let mut asked = Vec::new();
    let mut message = Message::at_end_of(&mut asked);
    // Table and name have the same numbers in both.
    for kind in [NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET] {
        message.attribute(kind, value(set, kind).ok_or(Errno::EPROTO)?);
    }
    let mut elements = Vec::new();
    for (_, all) in ask(NFT_MSG_GETSETELEM, family, &asked)? {
        let list = value(&all, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
        elements.extend(attributes(list).map(|(_, element)| element.to_vec()));
    }
    // The kernel tells the ends of intervals from the highest on, and wants to be told them from the lowest on.
    elements.reverse();
    Ok(elements)
}

/// Families and attributes.
fn ask(kind: u16, family: u8, asked: &[u8]) -> Result<Vec<(u8, Vec<u8>)>, Errno> {
    let body = [&[family, 0, 0, 0], asked].concat();
    let answers = netfilter(NFNL_SUBSYS_NFTABLES << 8 | kind, &body)?;
    let split = |answer: Vec<u8>| Some((*answer.first()?, answer.get(HEAD..)?.to_vec()));
    answers
        .into_iter()
        .map(|answer| split(answer).ok_or(Errno::EPROTO))
        .collect()
}

fn handle(all: &[u8], kind: u16) -> Result<u64, Errno> {
    let bytes = value(all, kind).and_then(|value| value.try_into().ok());
    bytes.map(u64::from_be_bytes).ok_or(Errno::EPROTO)
}

fn kept(all: &[u8], kinds: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut message = Message::at_end_of(&mut bytes);
    for (kind, value) in attributes(all).filter(|(kind, _)| kinds.contains(kind)) {
        message.attribute(kind, value);
    }
    bytes
}

/// The first of these tables that is not the same in both; with `is_quiet` no packet has come between, so that what they
/// are counted by is the same too.
#[must_use]
pub fn differing(before: &[Table], now: &[Table], is_quiet: bool) -> Option<String> {
    let [before, now] = [before, now].map(|tables| steady(tables, is_quiet));
    let name = |table: &Table| format!("{} {}", table.family_name(), table.name());
    let differs = before.iter().zip(&now).find(|(one, other)| one != other);
    let (one, other) = (before.len(), now.len());
    differs
        .map(|(table, _)| name(table))
        .or_else(|| before.get(other).map(name))
        .or_else(|| now.get(one).map(name))
}
