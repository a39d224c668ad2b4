//! A packet filter as the image has it, and as the kernel is told it.

use super::Filter;
use floe_image::record::{
    FilterPartKind, FilterPartRecord, FilterTableRecord, IpSetRecord, LegacyTableRecord, PacketFilterRecord,
    TrackedRecord,
};
use floe_sys::netfilter::{
    legacy::LegacyTable,
    ruleset::{Part, PartKind, Table},
    sets::Set,
    tracking::Tracked,
};

/// Kinds as the kernel's and as the image's.
const KINDS: [(PartKind, FilterPartKind); 5] = [
    (PartKind::Chain, FilterPartKind::Chain),
    (PartKind::Object, FilterPartKind::Object),
    (PartKind::Set, FilterPartKind::Set),
    (PartKind::Flowtable, FilterPartKind::Flowtable),
    (PartKind::Rule, FilterPartKind::Rule),
];

impl From<Filter> for PacketFilterRecord {
    fn from(filter: Filter) -> Self {
        let tracked = |tracked: Tracked| TrackedRecord {
            family: tracked.family,
            attributes: tracked.attributes,
        };
        let set = |set: Set| IpSetRecord {
            index: set.index,
            attributes: set.attributes,
            elements: set.elements,
        };
        let legacy = |table: LegacyTable| LegacyTableRecord {
            family: table.family,
            name: table.name,
            hooks: table.hooks,
            begins: table.begins,
            ends: table.ends,
            entries: table.entries,
        };
        Self {
            tables: filter.tables.into_iter().map(table_record).collect(),
            connections: filter.connections.into_iter().map(tracked).collect(),
            sets: filter.sets.into_iter().map(set).collect(),
            legacy: filter.legacy.into_iter().map(legacy).collect(),
        }
    }
}

impl From<&PacketFilterRecord> for Filter {
    fn from(record: &PacketFilterRecord) -> Self {
        let tracked = |record: &TrackedRecord| Tracked {
            family: record.family,
            attributes: record.attributes.clone(),
        };
        let set = |record: &IpSetRecord| Set {
            index: record.index,
            attributes: record.attributes.clone(),
            elements: record.elements.clone(),
        };
        let legacy = |record: &LegacyTableRecord| LegacyTable {
            family: record.family,
            name: record.name.clone(),
            hooks: record.hooks,
            begins: record.begins.clone(),
            ends: record.ends.clone(),
            entries: record.entries.clone(),
        };
        Self {
            tables: record.tables.iter().map(table).collect(),
            connections: record.connections.iter().map(tracked).collect(),
            sets: record.sets.iter().map(set).collect(),
            legacy: record.legacy.iter().map(legacy).collect(),
        }
    }
}

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

fn table(table: &FilterTableRecord) -> Table {
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
    Table {
        family: table.family,
        handle: table.handle,
        attributes: table.attributes.clone(),
        parts: table.parts.iter().map(part).collect(),
    }
}
