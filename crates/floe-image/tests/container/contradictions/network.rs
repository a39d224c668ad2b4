//! Packet filters.

use super::contradiction;

#[test]
fn packet_filters_that_no_kernel_has_are_refused() {
    let table = |fault: &str| format!("table 3 of the packet filter {fault}");
    for address in [[10, 242, 3, 6], [10, 241, 3, 5]] {
        contradiction(
            &format!("the network can't be joined to the host's by the address {address:?}"),
            |s| s.sandbox.link.as_mut().expect("a link").address = address,
        );
    }
    contradiction(&table("is not behind the one before it"), |s| {
        let again = s.networks[0].filter.tables[0].clone();
        s.networks[0].filter.tables.push(again);
    });
    contradiction(&table("has no attributes of netlink"), |s| {
        s.networks[0].filter.tables[0].attributes[0] = 3;
    });
    for attributes in [vec![], vec![0; 5], vec![255, 255, 1, 0], vec![5, 0, 1, 0, 7]] {
        contradiction(&table("has a part without attributes of netlink"), |s| {
            s.networks[0].filter.tables[0].parts[2].attributes = attributes;
        });
    }
    contradiction(&table("has an element without attributes of netlink"), |s| {
        s.networks[0].filter.tables[0].parts[1].elements[0].pop();
    });
    for handle in [0, 1] {
        contradiction(&table("has parts with impossible handles"), |s| {
            s.networks[0].filter.tables[0].parts[2].handle = handle;
        });
    }
    let skipped = "between the handles of the packet filter too many are missing";
    contradiction(skipped, |s| s.networks[0].filter.tables[0].handle = 1 << 21);
    contradiction(skipped, |s| {
        s.networks[0].filter.tables[0].parts[2].handle = u64::MAX;
    });
    contradiction("tracked connection 0 has no attributes of netlink", |s| {
        s.networks[0].filter.connections[0].attributes.clear();
    });
}

#[test]
fn sets_and_legacy_tables_that_no_kernel_has_are_refused() {
    let set = |index: u16, fault: &str| format!("set {index} of the packet filter {fault}");
    contradiction(&set(2, "is not behind the one before it"), |s| {
        let again = s.networks[0].filter.sets[0].clone();
        s.networks[0].filter.sets.push(again);
    });
    contradiction(&set(u16::MAX, "is not behind the one before it"), |s| {
        let filter = &mut s.networks[0].filter;
        let all = (0..u16::MAX).map(|index| floe_image::record::IpSetRecord {
            index,
            elements: Vec::new(),
            ..filter.sets[0].clone()
        });
        let last = floe_image::record::IpSetRecord {
            index: u16::MAX,
            ..filter.sets[0].clone()
        };
        filter.sets = all.chain([last]).collect();
    });
    contradiction(&set(2, "has no attributes of netlink"), |s| {
        s.networks[0].filter.sets[0].attributes.pop();
    });
    contradiction(&set(2, "has an element without attributes of netlink"), |s| {
        s.networks[0].filter.sets[0].elements[0].clear();
    });
    contradiction(&set(2, "has an attribute twice"), |s| {
        let set = &mut s.networks[0].filter.sets[0];
        set.attributes = [&set.attributes[..], &set.attributes[..]].concat();
    });
    let hash_size = [8, 0, 18, 0x40, 0, 0, 4, 0];
    contradiction(&set(2, "has an attribute twice"), |s| {
        let set = &mut s.networks[0].filter.sets[0];
        set.attributes
            .extend([20, 0, 7, 0x80].iter().chain(&hash_size).chain(&hash_size));
    });
    contradiction(&set(2, "has an impossible hashsize"), |s| {
        let longer = [16, 0, 7, 0x80, 12, 0, 18, 0x40, 0, 0, 4, 0, 127, 0, 0, 0];
        s.networks[0].filter.sets[0].attributes.extend(longer);
    });
    // IP_TO, CIDR, PORT_TO and IP2_TO; of a type whose name is not told.
    for kind in [2, 3, 5, 22] {
        contradiction(&set(2, "has an element that is several"), |s| {
            let element = &mut s.networks[0].filter.sets[0].elements[0];
            element.extend([6, 0, kind, 0x40, 0, 1, 0, 0]);
        });
    }
    contradiction(&set(2, "has an element with an attribute twice"), |s| {
        let element = &mut s.networks[0].filter.sets[0].elements[0];
        element.extend_from_within(..);
    });
    let missing = "between the numbers of sets of the packet filters too many are missing";
    contradiction(missing, |s| s.networks[0].filter.sets[0].index = 1025);
    let table = |family: u8, fault: &str| format!("table \"raw\" of family {family} of the packet filter {fault}");
    contradiction(&table(2, "is there twice"), |s| {
        let again = s.networks[0].filter.legacy[0].clone();
        s.networks[0].filter.legacy.push(again);
    });
    contradiction(&table(7, "has impossible hooks"), |s| {
        s.networks[0].filter.legacy[0].family = 7;
    });
    contradiction(&table(2, "has impossible hooks"), |s| {
        s.networks[0].filter.legacy[0].ends.pop();
    });
    for bytes in [0, 300] {
        contradiction(&table(2, "has no whole entries"), |s| {
            s.networks[0].filter.legacy[0].entries.truncate(bytes);
        });
    }
}
