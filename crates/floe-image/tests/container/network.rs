//! Networks that can't have been.

use crate::contradictions::contradiction;
use floe_image::record::*;
use serde_bytes::ByteBuf;

fn device(position: usize, fault: &str, change: impl FnOnce(&mut NetworkDeviceRecord)) {
    contradiction(&format!("network device {fault}"), |s| {
        change(&mut s.networks[0].devices[position]);
    });
}

fn setting(fault: &str, change: impl FnOnce(&mut NetworkSetting)) {
    contradiction(&format!("setting 0 of a network {fault}"), |s| {
        change(&mut s.networks[0].settings[0]);
    });
}

#[test]
fn each_network_namespace_has_one() {
    let other = "its networks are not those of its network namespaces";
    contradiction(other, |s| s.networks.push(NetworkRecord::default()));
    contradiction(other, |s| drop(s.networks.pop()));
    contradiction(other, |s| s.networks.reverse());
    contradiction(other, |s| s.networks[1].namespace = 5);
    contradiction(other, |s| {
        s.sandbox.net = NamespaceOrigin::Host;
        s.sandbox.link = None;
    });
}

#[test]
fn open_files_are_of_networks_that_are_there() {
    contradiction("open file 0 is of network namespace 5, which the image lacks", |s| {
        s.open_files[0].network = 5;
    });
}

#[test]
fn devices_have_numbers_and_names_of_their_own() {
    device(1, "1 is out of order", |d| d.number = 1);
    device(0, "0 is out of order", |d| d.number = 0);
    contradiction("network device 2147483648 is out of order", |s| {
        s.networks[0].devices[2].link = None;
        s.networks[0].devices[2].kind = "dummy".to_owned();
        s.networks[0].devices[3].number = 1 << 31;
    });
    for name in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-12", "a\0"] {
        device(1, "2 has an impossible name", |d| d.name = name.as_bytes().to_vec());
    }
    device(3, "5 has an impossible other name", |d| {
        d.other_names[0] = ByteBuf::from(vec![b'a'; 128]);
    });
    device(3, "5 has the name of another one", |d| d.name = b"br0".to_vec());
    device(3, "5 has the name of another one", |d| {
        d.other_names[0] = ByteBuf::from(b"lo".to_vec());
    });
    device(1, "2 is of no kind", |d| d.kind.clear());
}

#[test]
fn devices_stand_on_others_that_are_there() {
    for other in [3, 4] {
        device(2, "4 is on one that is not there", |d| d.link = Some(other));
        device(2, "4 is a part of one that is not there", |d| d.master = Some(other));
    }
    device(4, "6 is on one that is not there", |d| d.link = Some(4));
    device(4, "6 is on one that is not there", |d| d.link = None);
    for elsewhere in [0, 5] {
        device(4, "6 is on one that is not there", |d| {
            d.link_namespace = Some(elsewhere);
        });
    }
}

#[test]
fn nothing_is_too_long() {
    device(1, "2 has attributes that are too long", |d| d.options = vec![0; 16_385]);
    device(1, "2 has attributes that are too long", |d| {
        // One that is as long as it says, and fits in no other one.
        d.attributes = [&[0xfc, 0xff, 1, 0][..], &[0; 0xfff8]].concat();
    });
    for attributes in [vec![0; 5], vec![255, 255, 1, 0], vec![5, 0, 1, 0, 7]] {
        device(1, "2 has no attributes of netlink", |d| d.port = attributes);
    }
    contradiction("entry 1 of the routes of a network is too long", |s| {
        s.networks[0].routes[1] = ByteBuf::from(vec![0; 60_001]);
    });
    setting("has an impossible value", |s| s.value = vec![b'1'; 60_001]);
}

#[test]
fn settings_are_below_those_of_networks() {
    for path in [
        "",
        "/ipv4/ip_forward",
        "../kernel/hostname",
        "ipv4//x",
        "ipv4/./x",
        "ipv4/",
        "a\0b",
    ] {
        setting("is not below the settings of networks", |s| {
            s.path = path.as_bytes().to_vec();
        });
    }
    setting("has an impossible value", |s| s.value = vec![b'1', 0]);
}

#[test]
fn pairs_have_one_other_end_each() {
    let outer = |name: &[u8], bridge: Option<&[u8]>| {
        let bridge = bridge.map(|bridge| ByteBuf::from(bridge.to_vec()));
        let name = name.to_vec();
        Some(OuterEndRecord { name, bridge })
    };
    for position in [0, 1] {
        let fault = format!("{} has an end at the host, and is no pair", position + 1);
        device(position, &fault, |d| d.outer = outer(b"veth0", None));
    }
    device(2, "4 has an end at the host, and is no pair", |d| {
        d.inherited = true;
        d.outer = outer(b"veth0", None);
    });
    device(2, "4 has not one other end", |d| d.outer = outer(b"veth0", None));
    device(3, "5 has not one other end", |d| d.link = None);
    for (name, bridge) in [
        (&b"a/b"[..], None),
        (b"", None),
        (b"veth0", Some(&b"sixteen-bytes-12"[..])),
    ] {
        contradiction("network device 3 has an end at the host with an impossible name", |s| {
            s.networks[1].devices[2].outer = outer(name, bridge);
        });
    }
}
