//! The packet filter of the sample, and what joins its network to the host's.

use floe_image::record::{
    FilterPartKind, FilterPartRecord, FilterTableRecord, IpSetRecord, LegacyTableRecord, LinkRecord,
    PacketFilterRecord, PublishedRecord, TrackedRecord,
};

/// `table ip t` with a chain `c`, a set `s` that has 1.2.3.4 in it, and a rule of the chain; and a connection's
/// mark; the set `i` of ipset with an element; and the table `raw` with entries that say nothing.
pub fn packet_filter() -> PacketFilterRecord {
    let text = |kind: u8, letter: u8| vec![6, 0, kind, 0, letter, 0, 0, 0];
    let part = |kind, handle, named: u8| FilterPartRecord {
        kind,
        handle,
        attributes: [text(1, b't'), text(named, b'c')].concat(),
        elements: Vec::new(),
    };
    PacketFilterRecord {
        tables: vec![FilterTableRecord {
            family: 2,
            handle: 3,
            attributes: text(1, b't'),
            parts: vec![
                part(FilterPartKind::Chain, 1, 3),
                FilterPartRecord {
                    elements: vec![vec![12, 0, 1, 0x80, 8, 0, 1, 0, 1, 2, 3, 4]],
                    ..part(FilterPartKind::Set, 7, 2)
                },
                part(FilterPartKind::Rule, 5, 2),
            ],
        }],
        connections: vec![TrackedRecord {
            family: 2,
            attributes: vec![8, 0, 8, 0, 0, 0, 0, 7],
        }],
        sets: vec![IpSetRecord {
            index: 2,
            attributes: text(2, b'i'),
            elements: vec![vec![6, 0, 4, 0x40, 0, 80, 0, 0]],
        }],
        legacy: vec![LegacyTableRecord {
            family: 2,
            name: "raw".to_owned(),
            hooks: 9,
            begins: vec![0, 0, 0, 152, 0],
            ends: vec![0, 0, 0, 152, 0],
            entries: vec![0; 304],
        }],
    }
}

pub fn link() -> LinkRecord {
    LinkRecord {
        address: [10, 241, 3, 6],
        published: vec![PublishedRecord {
            udp: true,
            host: 5353,
            inside: 53,
        }],
    }
}
