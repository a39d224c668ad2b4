//! What a network namespace can have that floe does not carry: groups of bridges, keys of IPsec,
//! routes of groups and of MPLS.

use super::title;
use floe_sys::route::{self, Beyond, Device};
use std::{collections::BTreeMap, fs, io};

/// Object, reason, advice.
pub(super) type Finding = (String, String, &'static str);

/// Options of devices, IFLA_*_.
const BRIDGE_STP: u16 = 5;
const BRIDGE_VLANS: u16 = 7;
const MACVLAN_MODE: u16 = 1;
const MACVLAN_MODE_SOURCE: u8 = 16;
const USER_STP: u8 = 2;

/// Looks for all of it in the calling thread's network namespace.
pub(super) fn look(devices: &[(Device, Beyond)]) -> io::Result<Vec<Finding>> {
    let names: BTreeMap<u32, &Device> = devices.iter().map(|(device, _)| (device.index, device)).collect();
    let name = |index: u32| match names.get(&index) {
        Some(device) => title::device(&device.name, &device.kind),
        None => format!("network device {index}"),
    };
    let mut found = Vec::new();
    for index in route::lasting_groups()? {
        found.push((
            name(index),
            "a group was entered into its table by hand (bridge mdb)".to_owned(),
            "remove the entry",
        ));
    }
    if route::has_label_routes()? {
        found.push(not_carried("routes of MPLS", "remove them"));
    }
    if route::has_transforms()? {
        found.push(not_carried("IPsec (ip xfrm)", "flush its states and policies"));
    }
    for file in ["ip_mr_vif", "ip6_mr_vif"] {
        if lines(file)?.len() > 1 {
            found.push(not_carried(
                "routes of multicast groups",
                "end the program that makes them",
            ));
        }
    }
    for line in lines("dev_mcast")? {
        // Number, name, how many listen, how many of these by hand, address.
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, device, _, by_hand, address] = words[..]
            && by_hand != "0"
        {
            let reason = format!("it listens to {address}, which was set by hand (ip maddr)");
            found.push((format!("network device {device}"), reason, "remove the address"));
        }
    }
    Ok(found)
}

fn not_carried(what: &str, advice: &'static str) -> Finding {
    (what.to_owned(), "they are not carried".to_owned(), advice)
}

/// None where the kernel has no such file.
fn lines(name: &str) -> io::Result<Vec<String>> {
    match fs::read_to_string(format!("/proc/thread-self/net/{name}")) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// An option of a device that can't be carried.
pub(super) fn option(device: &Device) -> Option<&'static str> {
    let byte = |wanted| {
        let mut all = route::attributes(&device.options);
        let found = all.find(|(kind, _)| *kind == wanted);
        found.and_then(|(_, value)| value.first().copied()).unwrap_or(0)
    };
    match device.kind.as_str() {
        "bridge" if byte(BRIDGE_VLANS) != 0 => Some("VLANs of a bridge (vlan_filtering) are not carried"),
        "bridge" if byte(BRIDGE_STP) == USER_STP => Some("a program outside of the kernel does its spanning tree"),
        "macvlan" if byte(MACVLAN_MODE) == MACVLAN_MODE_SOURCE => Some("its list of sources is not carried"),
        _ => None,
    }
}
