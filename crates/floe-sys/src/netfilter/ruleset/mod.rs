//! The rules of a network namespace, as nf_tables has them: what is told of them is kept as it is told, attribute by
//! attribute, and told back to the kernel in one transaction. linux/netfilter/nf_tables.h, net/netfilter/nf_tables_api.c.
//!
//! Within a table the kernel numbers chains, rules, sets, objects and flowtables in the order in which they are made, and
//! programs name them by these handles. So they are made in that order, and what is missing between two handles is made
//! too, and taken away at the end. No part needs one with a higher handle, but elements of sets that a rule does not need yet.

mod expressions;
mod load;
mod read;

pub use load::load;
pub use read::{differing, read};

/// A table with all in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// NFPROTO_*.
    pub family: u8,
    /// Its number among the tables of the namespace.
    pub handle: u64,
    /// What it is: attributes of netlink, NFTA_TABLE_*.
    pub attributes: Vec<u8>,
    /// What is in it: rules of a chain in the order in which packets meet them.
    pub parts: Vec<Part>,
}

/// Something in a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub kind: PartKind,
    /// Its number in the table.
    pub handle: u64,
    /// Its attributes, NFTA_CHAIN_*, NFTA_RULE_* and so on.
    pub attributes: Vec<u8>,
    /// The elements of a set: attributes NFTA_SET_ELEM_* of each.
    pub elements: Vec<Vec<u8>>,
}

/// What there is in tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartKind {
    /// A chain.
    Chain,
    /// A set or map.
    Set,
    /// A counter, quota, limit or the like that has a name.
    Object,
    /// A flowtable.
    Flowtable,
    /// A rule.
    Rule,
}

/// How a kind is asked for and made, and which of its attributes are what.
struct Layout {
    kind: PartKind,
    get: u16,
    new: u16,
    /// NFTA_*_HANDLE.
    handle: u16,
    /// Those that make it what it is. What the kernel tells besides follows from the rest.
    kept: &'static [u16],
}

/// In an order in which they can be made, where handles don't tell another.
const LAYOUTS: [Layout; 5] = [
    Layout {
        kind: PartKind::Chain,
        get: 4,
        new: 3,
        handle: 2,
        // NFTA_CHAIN_TABLE, NAME, HOOK, POLICY, TYPE, COUNTERS, FLAGS, USERDATA.
        kept: &[1, 3, 4, 5, 7, 8, 10, 12],
    },
    Layout {
        kind: PartKind::Object,
        get: 19,
        new: 18,
        handle: 6,
        // NFTA_OBJ_TABLE, NAME, TYPE, DATA, USERDATA.
        kept: &[1, 2, 3, 4, 8],
    },
    Layout {
        kind: PartKind::Set,
        get: 10,
        new: 9,
        handle: 16,
        // NFTA_SET_TABLE, NAME, FLAGS, KEY_TYPE, KEY_LEN, DATA_TYPE, DATA_LEN, POLICY, DESC, TIMEOUT, GC_INTERVAL, USERDATA,
        // OBJ_TYPE, EXPR, EXPRESSIONS.
        kept: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18],
    },
    Layout {
        kind: PartKind::Flowtable,
        get: 23,
        new: 22,
        handle: 5,
        // NFTA_FLOWTABLE_TABLE, NAME, HOOK, FLAGS.
        kept: &[1, 2, 3, 7],
    },
    Layout {
        kind: PartKind::Rule,
        get: 7,
        new: 6,
        handle: 3,
        // NFTA_RULE_TABLE, CHAIN, EXPRESSIONS, COMPAT, USERDATA.
        kept: &[1, 2, 4, 5, 7],
    },
];

fn layout(kind: PartKind) -> &'static Layout {
    LAYOUTS
        .iter()
        .find(|layout| layout.kind == kind)
        .expect("there is one for each kind")
}

/// The value of an attribute.
fn value(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    crate::route::attributes(attributes)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

fn word(attributes: &[u8], wanted: u16) -> Option<u32> {
    Some(u32::from_be_bytes(value(attributes, wanted)?.try_into().ok()?))
}

/// Without its NUL.
fn text(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    let text = value(attributes, wanted)?;
    Some(text.strip_suffix(&[0]).unwrap_or(text))
}

#[cfg(test)]
mod tests;
