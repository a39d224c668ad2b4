//! What `floe inspect` tells of network namespaces.

use crate::output;
use floe_image::{
    Image,
    record::{NetworkDeviceRecord, NetworkRecord},
};
use floe_resources::ns::{network::addresses, packet_filter};
use serde::Serialize;
use std::collections::BTreeMap;

/// A network namespace that is the tree's own.
#[derive(Debug, Serialize)]
pub(super) struct Network {
    /// 0 is that of the tree's root.
    namespace: u32,
    devices: Vec<Device>,
    /// How many there are.
    routes: usize,
    rules: usize,
    next_hops: usize,
    neighbours: usize,
    settings: usize,
    filter_tables: usize,
    legacy_tables: usize,
    sets: usize,
    queueing_disciplines: usize,
    tracked_connections: usize,
    sockets: usize,
    /// Tables and sets of the packet filter.
    filter: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Device {
    number: u32,
    name: String,
    kind: String,
    up: bool,
    /// Of the device that it is on, or the other end.
    link: Option<u32>,
    /// The network namespace of that.
    link_namespace: Option<u32>,
    master: Option<u32>,
    /// What the other end was called, where that was the host's.
    outer: Option<String>,
    /// The bridge that it was a part of.
    outer_bridge: Option<String>,
    addresses: Vec<String>,
}

/// Those of an image.
pub(super) fn of(image: &Image) -> Vec<Network> {
    let sockets = |namespace: u32| {
        let files = image.open_files().iter().filter(|file| file.network == namespace);
        let is_socket = |kind: &str| ["unix-socket", "inet-socket", "tcp-connection", "raw-socket"].contains(&kind);
        files.filter(|file| is_socket(&file.kind)).count()
    };
    let network = |record: &NetworkRecord| {
        let mut addresses: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (device, address) in self::addresses(record) {
            addresses.entry(device).or_default().push(address);
        }
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let device = |found: &NetworkDeviceRecord| {
            let outer = found.outer.as_ref();
            Device {
                number: found.number,
                name: text(&found.name),
                kind: found.kind.clone(),
                up: found.flags & libc::IFF_UP as u32 != 0,
                link: found.link,
                link_namespace: found.link.map(|_| found.link_namespace.unwrap_or(record.namespace)),
                master: found.master,
                outer: outer.map(|outer| text(&outer.name)),
                outer_bridge: outer.and_then(|outer| Some(text(outer.bridge.as_ref()?))),
                addresses: addresses.get(&found.number).cloned().unwrap_or_default(),
            }
        };
        Network {
            namespace: record.namespace,
            devices: record.devices.iter().map(device).collect(),
            routes: record.routes.len(),
            rules: record.rules.len(),
            next_hops: record.next_hops.len(),
            neighbours: record.neighbours.len() + record.proxies.len() + record.frames.len(),
            settings: record.settings.len(),
            filter_tables: record.filter.tables.len(),
            legacy_tables: record.filter.legacy.len(),
            sets: record.filter.sets.len(),
            queueing_disciplines: record.traffic.disciplines.len(),
            tracked_connections: record.filter.connections.len(),
            sockets: sockets(record.namespace),
            filter: packet_filter::titles(&record.filter),
        }
    };
    image.networks().iter().map(network).collect()
}

/// A line for each device, and one for all else of each.
pub(super) fn print(all: &[Network]) {
    let name = |namespace: u32, number: u32| {
        let networks = all.iter().filter(|network| network.namespace == namespace);
        let mut devices = networks.flat_map(|network| &network.devices);
        let found = devices.find(|device| device.number == number);
        found.map_or_else(|| number.to_string(), |device| device.name.clone())
    };
    let rows = all.iter().flat_map(|network| {
        let own = network.namespace;
        network.devices.iter().map(move |device| {
            let on = match (device.link, device.link_namespace) {
                (Some(link), Some(elsewhere)) if elsewhere != own => {
                    format!("{} of {elsewhere}", name(elsewhere, link))
                }
                (Some(link), _) => name(own, link),
                (None, _) => match (&device.outer, &device.outer_bridge) {
                    (Some(end), Some(bridge)) => format!("{end} of the host, in {bridge}"),
                    (Some(end), None) => format!("{end} of the host"),
                    (None, _) => String::new(),
                },
            };
            vec![
                own.to_string(),
                device.number.to_string(),
                device.name.clone(),
                device.kind.clone(),
                if device.up { "up" } else { "down" }.to_owned(),
                on,
                device.master.map(|master| name(own, master)).unwrap_or_default(),
                device.addresses.join(", "),
            ]
        })
    });
    let header = [
        "NETWORK",
        "DEVICE",
        "NAME",
        "KIND",
        "STATE",
        "ON",
        "PART OF",
        "ADDRESSES",
    ];
    output::table(&header, &rows.collect::<Vec<_>>());
    for network in all {
        output::line(&format!(
            "network {}: {} routes, {} rules, {} next hops, {} neighbours, {} settings, {} tables of nft, {} of x_tables, {} sets of ipset, {} queueing disciplines, {} tracked connections, {} sockets",
            network.namespace,
            network.routes,
            network.rules,
            network.next_hops,
            network.neighbours,
            network.settings,
            network.filter_tables,
            network.legacy_tables,
            network.sets,
            network.queueing_disciplines,
            network.tracked_connections,
            network.sockets,
        ));
        for title in &network.filter {
            output::line(&format!("network {}: {title}", network.namespace));
        }
    }
}
