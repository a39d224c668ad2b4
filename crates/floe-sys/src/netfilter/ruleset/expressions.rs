//! What rules and elements consist of: lists of expressions, each with a name and attributes of its own.

use super::{PartKind, Table, text, value, word};
use crate::{netfilter::message::*, route::attributes};

/// NFTA_DYNSET_SET_NAME, NFTA_OBJREF_SET_NAME.
const DYNSET_SET_NAME: u16 = 1;
const OBJREF_SET_NAME: u16 = 4;
/// Of elements: NFTA_SET_ELEM_EXPIRATION, EXPR, EXPRESSIONS.
const ELEMENT_EXPIRATION: u16 = 5;
const ELEMENT_EXPR: u16 = 7;
const ELEMENT_EXPRESSIONS: u16 = 11;
/// NFT_SET_EVAL.
const SET_EVAL: u32 = 0x20;
const CHAIN_COUNTERS: u16 = 8;
const OBJECT_DATA: u16 = 4;
const RULE_COMPAT: u16 = 5;
const RULE_COMPAT_PROTO: u16 = 1;
const RULE_COMPAT_FLAGS: u16 = 2;
const COMPAT_INVERTED: u32 = 2;
const NFT_CMP_NEQ: u32 = 1;
/// Where the protocol stands in a header of IP version 4.
const IP4_PROTOCOL: u32 = 9;

/// Names and attributes.
fn each(list: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    attributes(list).filter_map(|(_, expression)| {
        let name = text(expression, NFTA_EXPR_NAME)?;
        Some((name, value(expression, NFTA_EXPR_DATA).unwrap_or_default()))
    })
}

fn of_rule(rule: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    each(value(rule, NFTA_RULE_EXPRESSIONS).unwrap_or_default())
}

/// Names of the sets that a rule looks into.
pub(super) fn sets_of(rule: &[u8]) -> impl Iterator<Item = &[u8]> {
    of_rule(rule).filter_map(|(name, data)| match name {
        b"lookup" => text(data, NFTA_LOOKUP_SET),
        b"dynset" => text(data, DYNSET_SET_NAME),
        b"objref" => text(data, OBJREF_SET_NAME),
        _ => None,
    })
}

/// Names of what the rules of these tables take from x_tables (iptables, ebtables): matches and targets.
pub(super) fn extensions(table: &Table) -> Vec<String> {
    let rules = table.parts.iter().filter(|part| part.kind == PartKind::Rule);
    rules
        .flat_map(|rule| of_rule(&rule.attributes))
        .filter(|(name, _)| [&b"match"[..], b"target"].contains(name))
        // NFTA_MATCH_NAME and NFTA_TARGET_NAME.
        .filter_map(|(_, data)| text(data, 1))
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

/// What a rule with matches or targets of x_tables is about: the kernel asks for it, but does not tell it. It is the
/// protocol that the rule compares.
pub(super) fn compatibility(rule: &[u8]) -> Option<Vec<u8>> {
    of_rule(rule).find(|(name, _)| [&b"match"[..], b"target"].contains(name))?;
    let mut loaded = false;
    let (mut protocol, mut flags) = (0, 0);
    for (name, data) in of_rule(rule) {
        match name {
            b"meta" => loaded = word(data, NFTA_META_KEY) == Some(NFT_META_L4PROTO),
            b"payload" => {
                loaded = word(data, NFTA_PAYLOAD_BASE) == Some(NFT_PAYLOAD_NETWORK_HEADER)
                    && word(data, NFTA_PAYLOAD_OFFSET) == Some(IP4_PROTOCOL)
                    && word(data, NFTA_PAYLOAD_LEN) == Some(1);
            }
            b"cmp" if loaded => {
                let compared = value(data, NFTA_CMP_DATA).and_then(|data| value(data, NFTA_DATA_VALUE));
                if let Some([number, ..]) = compared {
                    protocol = u32::from(*number);
                    flags = match word(data, NFTA_CMP_OP) {
                        Some(NFT_CMP_NEQ) => COMPAT_INVERTED,
                        _ => 0,
                    };
                    break;
                }
            }
            _ => loaded = false,
        }
    }
    let mut inner = Vec::new();
    let mut message = Message::at_end_of(&mut inner);
    message.number(RULE_COMPAT_PROTO, protocol);
    message.number(RULE_COMPAT_FLAGS, flags);
    let mut all = Vec::new();
    Message::at_end_of(&mut all).attribute(RULE_COMPAT | libc::NLA_F_NESTED as u16, &inner);
    Some(all)
}

/// Without what changes by itself: elements that expire and when something was last; and where packets may have come
/// meanwhile also what they are counted by, and elements that rules add and take away.
pub(super) fn steady(tables: &[Table], is_quiet: bool) -> Vec<Table> {
    let mut tables = tables.to_vec();
    for part in tables.iter_mut().flat_map(|table| &mut table.parts) {
        let (lists, dropped): (&[u16], &[u16]) = match part.kind {
            PartKind::Rule => (&[NFTA_RULE_EXPRESSIONS], &[]),
            PartKind::Chain if !is_quiet => (&[], &[CHAIN_COUNTERS]),
            PartKind::Object if !is_quiet => (&[], &[OBJECT_DATA]),
            _ => (&[], &[]),
        };
        part.attributes = without(&part.attributes, (lists, dropped), is_quiet);
        let fed = part.kind == PartKind::Set
            && word(&part.attributes, NFTA_SET_FLAGS).is_some_and(|flags| flags & SET_EVAL != 0);
        part.elements
            .retain(|element| value(element, ELEMENT_EXPIRATION).is_none() && (is_quiet || !fed));
        for element in &mut part.elements {
            *element = without(element, (&[ELEMENT_EXPRESSIONS, ELEMENT_EXPR], &[]), is_quiet);
        }
        part.elements.sort_unstable();
    }
    tables
}

fn without(all: &[u8], (lists, dropped): (&[u16], &[u16]), is_quiet: bool) -> Vec<u8> {
    const COUNTING: [&[u8]; 4] = [b"counter", b"quota", b"limit", b"connlimit"];
    let mut bytes = Vec::new();
    let mut kept = Message::at_end_of(&mut bytes);
    for (kind, value) in attributes(all).filter(|(kind, _)| !dropped.contains(kind)) {
        if !lists.contains(&kind) {
            kept.attribute(kind, value);
            continue;
        }
        for (name, data) in each(value) {
            let passes = name == b"last" || !is_quiet && COUNTING.contains(&name);
            kept.attribute(kind, &[name, if passes { &[] } else { data }].concat());
        }
        if kind == ELEMENT_EXPR {
            // A single one, without a list around it.
            kept.attribute(kind, if is_quiet { value } else { &[] });
        }
    }
    bytes
}
