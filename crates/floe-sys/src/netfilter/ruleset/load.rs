//! Makes tables again, in one transaction.

use super::{Part, PartKind, Table, expressions::sets_of, layout, text, word};
use crate::netfilter::{message::*, open, perform};
use nix::errno::Errno;
use std::collections::BTreeMap;

/// The most handles that are made for nothing.
const MOST_SKIPPED: u64 = 1 << 20;
/// Bytes of elements in one message, of which an attribute is no longer than 64 KiB.
const ELEMENTS_BYTES: usize = 32 << 10;
/// NFTA_CHAIN_NAME and so on; of tables it is NFTA_TABLE_NAME.
const RULE_POSITION: u16 = 6;
const SET_ANONYMOUS: u32 = 1;
const SET_CONSTANT: u32 = 2;
const NFT_MSG_DELCHAIN: u16 = 5;
/// What is made for a handle that nothing has any more.
const SKIPPED: &str = "floe-skipped";

/// Makes these tables in the calling thread's network namespace, which has had none yet.
///
/// # Errors
/// What the kernel says to any part of them; E2BIG where too many handles are missing between them.
pub fn load(tables: &[Table]) -> Result<(), Errno> {
    if tables.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::default();
    let mut handle = 0;
    for table in tables {
        let missing = table.handle.checked_sub(handle + 1).ok_or(Errno::EINVAL)?;
        if missing > MOST_SKIPPED {
            return Err(Errno::E2BIG);
        }
        for _ in 0..missing {
            let named = |message: &mut Message<'_>| message.text(NFTA_TABLE_NAME, SKIPPED);
            batch.message_of(table.family, NFT_MSG_NEWTABLE, NEW, named);
            batch.message_of(table.family, NFT_MSG_DELTABLE, 0, named);
        }
        handle = table.handle;
        Loading::new(table, &mut batch).all()?;
    }
    perform(&open()?, &batch.finish())
}

/// A table that is being made.
struct Loading<'a> {
    table: &'a Table,
    batch: &'a mut Batch,
    /// The last handle that the kernel gave.
    handle: u64,
    skips: bool,
    /// Sets whose elements are still to come.
    waiting: Vec<&'a Part>,
}

impl<'a> Loading<'a> {
    fn new(table: &'a Table, batch: &'a mut Batch) -> Self {
        Self {
            table,
            batch,
            handle: 0,
            skips: false,
            waiting: Vec::new(),
        }
    }

    fn say(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Message<'_>)) {
        self.batch.message_of(self.table.family, kind, flags, fill);
    }

    fn all(mut self) -> Result<(), Errno> {
        self.say(NFT_MSG_NEWTABLE, NEW, |message| message.raw(&self.table.attributes));
        let mut parts: Vec<&Part> = self.table.parts.iter().collect();
        parts.sort_by_key(|part| part.handle);
        let before = self.places();
        let skipped = parts.last().map_or(0, |last| last.handle) - parts.len() as u64;
        if skipped > MOST_SKIPPED {
            return Err(Errno::E2BIG);
        }
        for part in parts {
            self.skip_to(part.handle)?;
            self.part(part, before.get(&part.handle).copied());
        }
        for set in std::mem::take(&mut self.waiting) {
            self.elements(set);
        }
        if self.skips {
            let name = self.name();
            self.say(NFT_MSG_DELCHAIN, 0, |message| {
                message.attribute(NFTA_CHAIN_TABLE, &name);
                message.text(NFTA_CHAIN_NAME, SKIPPED);
            });
        }
        Ok(())
    }

    fn name(&self) -> Vec<u8> {
        let mut name = text(&self.table.attributes, NFTA_TABLE_NAME)
            .unwrap_or_default()
            .to_vec();
        name.push(0);
        name
    }

    /// For each rule, by handle, the next one of its chain that is there when it is made.
    fn places(&self) -> BTreeMap<u64, u64> {
        let mut chains: BTreeMap<&[u8], Vec<u64>> = BTreeMap::new();
        for rule in self.table.parts.iter().filter(|part| part.kind == PartKind::Rule) {
            let chain = text(&rule.attributes, NFTA_RULE_CHAIN).unwrap_or_default();
            chains.entry(chain).or_default().push(rule.handle);
        }
        let mut places = BTreeMap::new();
        for rules in chains.values() {
            // From the last one on: those behind that were made earlier, the nearest one last.
            let mut behind: Vec<u64> = Vec::new();
            for rule in rules.iter().rev() {
                while behind.last().is_some_and(|next| next > rule) {
                    behind.pop();
                }
                if let Some(next) = behind.last() {
                    places.insert(*rule, *next);
                }
                behind.push(*rule);
            }
        }
        places
    }

    /// Uses up the handles before this one.
    fn skip_to(&mut self, handle: u64) -> Result<(), Errno> {
        let missing = handle.checked_sub(self.handle + 1).ok_or(Errno::EINVAL)?;
        self.handle = handle;
        let name = self.name();
        for _ in 0..missing {
            if self.skips {
                self.say(NFT_MSG_NEWRULE, NEW, |message| {
                    message.attribute(NFTA_RULE_TABLE, &name);
                    message.text(NFTA_RULE_CHAIN, SKIPPED);
                });
            } else {
                self.skips = true;
                self.say(NFT_MSG_NEWCHAIN, NEW, |message| {
                    message.attribute(NFTA_CHAIN_TABLE, &name);
                    message.text(NFTA_CHAIN_NAME, SKIPPED);
                });
            }
        }
        Ok(())
    }

    fn part(&mut self, part: &'a Part, next: Option<u64>) {
        let kind = layout(part.kind).new;
        match part.kind {
            PartKind::Set => {
                // Anything, but it must be there: rules may know a set by it that has no name.
                let id = part.handle as u32;
                self.say(kind, NEW, |message| {
                    message.raw(&part.attributes);
                    message.number(NFTA_SET_ID, id);
                });
                self.waiting.push(part);
            }
            PartKind::Rule => {
                self.needed_elements(part);
                let append = if next.is_none() { libc::NLM_F_APPEND as u16 } else { 0 };
                self.say(kind, NEW | append, |message| {
                    message.raw(&part.attributes);
                    if let Some(next) = next {
                        message.attribute(RULE_POSITION, &next.to_be_bytes());
                    }
                });
            }
            PartKind::Chain | PartKind::Object | PartKind::Flowtable => {
                self.say(kind, NEW, |message| message.raw(&part.attributes));
            }
        }
    }

    /// Elements of sets that take none any more once a rule looks into them.
    fn needed_elements(&mut self, rule: &Part) {
        let names: Vec<&[u8]> = sets_of(&rule.attributes).collect();
        let closes = |set: &Part| {
            let flags = word(&set.attributes, NFTA_SET_FLAGS).unwrap_or_default();
            flags & (SET_ANONYMOUS | SET_CONSTANT) != 0
                && text(&set.attributes, NFTA_SET_NAME).is_some_and(|name| names.contains(&name))
        };
        let (now, later) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|set| closes(set));
        self.waiting = later;
        let now: Vec<&Part> = now;
        for set in now {
            self.elements(set);
        }
    }

    fn elements(&mut self, set: &Part) {
        let table = self.name();
        let mut name = text(&set.attributes, NFTA_SET_NAME).unwrap_or_default().to_vec();
        name.push(0);
        let mut rest = &set.elements[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |element: &&Vec<u8>| {
                bytes += element.len() + 4;
                bytes <= ELEMENTS_BYTES
            };
            let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            rest = later;
            self.say(NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE as u16, |message| {
                message.attribute(NFTA_SET_ELEM_LIST_TABLE, &table);
                message.attribute(NFTA_SET_ELEM_LIST_SET, &name);
                message.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                    for element in now {
                        list.attribute(NFTA_LIST_ELEM | libc::NLA_F_NESTED as u16, element);
                    }
                });
            });
        }
    }
}
