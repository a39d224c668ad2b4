//! The networks of the golden image: a bridge, a pair of which one end is its port, another pair that leads to a further
//! network namespace, and there one that leads to the host.

use floe_image::record::*;
use serde_bytes::ByteBuf;

fn device(number: u32, name: &[u8], kind: &str) -> NetworkDeviceRecord {
    NetworkDeviceRecord {
        number,
        name: name.to_vec(),
        other_names: Vec::new(),
        kind: kind.to_owned(),
        inherited: false,
        flags: 0x1001,
        carrier: true,
        link: None,
        link_namespace: None,
        master: None,
        attributes: vec![8, 0, 4, 0, 0xdc, 5, 0, 0],
        options: Vec::new(),
        port: Vec::new(),
        address_mode: Some(0),
        outer: None,
    }
}

fn entries(bytes: &[&[u8]]) -> Vec<ByteBuf> {
    bytes.iter().map(|entry| ByteBuf::from(entry.to_vec())).collect()
}

fn setting(path: &[u8], value: &[u8], usual: bool) -> NetworkSetting {
    NetworkSetting {
        path: path.to_vec(),
        value: value.to_vec(),
        usual,
    }
}

/// What is in the tree's own network, with a packet filter, and in another one of the tree.
pub fn networks(filter: PacketFilterRecord) -> Vec<NetworkRecord> {
    let devices = vec![
        NetworkDeviceRecord {
            inherited: true,
            ..device(1, b"lo", "")
        },
        NetworkDeviceRecord {
            options: vec![8, 0, 1, 0, 0xdc, 5, 0, 0],
            ..device(2, b"br0", "bridge")
        },
        NetworkDeviceRecord {
            link: Some(5),
            master: Some(2),
            port: vec![5, 0, 4, 0, 1, 0, 0, 0],
            ..device(4, b"v0", "veth")
        },
        NetworkDeviceRecord {
            link: Some(4),
            other_names: entries(&[b"another-name-of-the-end"]),
            address_mode: None,
            ..device(5, b"v1", "veth")
        },
        NetworkDeviceRecord {
            link: Some(2),
            link_namespace: Some(6),
            ..device(6, b"v2", "veth")
        },
    ];
    let below = vec![
        NetworkDeviceRecord {
            inherited: true,
            ..device(1, b"lo", "")
        },
        NetworkDeviceRecord {
            link: Some(6),
            link_namespace: Some(0),
            ..device(2, b"eth0", "veth")
        },
        NetworkDeviceRecord {
            outer: Some(OuterEndRecord {
                name: b"veth7".to_vec(),
                bridge: Some(ByteBuf::from(b"br0".to_vec())),
            }),
            ..device(3, b"eth1", "veth")
        },
    ];
    let own = NetworkRecord {
        namespace: 0,
        devices,
        addresses: entries(&[&[2, 8, 0, 254, 1, 0, 0, 0, 8, 0, 1, 0, 127, 0, 0, 1]]),
        labels: entries(&[&[10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]),
        next_hops: entries(&[&[0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 1, 0, 7, 0, 0, 0, 4, 0, 4, 0]]),
        routes: entries(&[
            &[2, 0, 0, 0, 254, 3, 0, 6, 0, 0, 0, 0],
            &[2, 0, 0, 0, 77, 3, 0, 7, 0, 0, 0, 0],
        ]),
        rules: entries(&[&[2, 0, 0, 0, 255, 0, 0, 1, 0, 0, 0, 0]]),
        neighbours: entries(&[&[2, 0, 0, 0, 2, 0, 0, 0, 0x80, 0, 0, 0, 8, 0, 1, 0, 10, 0, 0, 7]]),
        proxies: entries(&[&[2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 8, 0, 8, 0, 1, 0, 10, 0, 0, 8]]),
        frames: entries(&[&[
            7, 0, 0, 0, 4, 0, 0, 0, 0x40, 0, 4, 0, 10, 0, 2, 0, 2, 0, 0, 0, 0, 7, 0, 0,
        ]]),
        settings: vec![
            setting(b"ipv4/conf/v0/rp_filter", b"2", false),
            setting(b"ipv4/ip_forward", b"0", true),
        ],
        filter,
        traffic: TrafficRecord {
            disciplines: entries(&[&[
                0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 1, 0, 255, 255, 255, 255, 0, 0, 0, 0, 8, 0, 1, 0, b'h', b't', b'b', 0,
            ]]),
            classes: entries(&[&[0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0]]),
            filters: entries(&[&[0, 0, 0, 0, 4, 0, 0, 0, 0, 8, 0, 0x80, 0, 0, 1, 0, 8, 0, 1, 0]]),
        },
    };
    let further = NetworkRecord {
        namespace: 6,
        devices: below,
        addresses: entries(&[&[2, 24, 0, 0, 2, 0, 0, 0, 8, 0, 1, 0, 10, 0, 0, 2]]),
        ..NetworkRecord::default()
    };
    vec![own, further]
}
