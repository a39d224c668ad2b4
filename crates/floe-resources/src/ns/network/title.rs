//! How findings name what is in a network namespace.

use floe_image::record::NetworkRecord;
use floe_sys::route::{self, Table};
use serde_bytes::ByteBuf;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A device, with what it is.
pub(super) fn device(name: &[u8], kind: &str) -> String {
    let name = String::from_utf8_lossy(name);
    if kind.is_empty() {
        format!("network device {name}")
    } else {
        format!("network device {name} ({kind})")
    }
}

/// A table.
pub(super) fn table(table: Table) -> &'static str {
    match table {
        Table::Addresses => "network addresses",
        Table::Labels => "labels of addresses",
        Table::NextHops => "next hops",
        Table::Routes => "routes",
        Table::Rules => "rules of routing",
        Table::Neighbours => "neighbours",
        Table::Proxies => "proxies of neighbours",
        Table::Frames => "forwarding of frames",
    }
}

/// An entry of a table.
pub(super) fn entry(table: Table, entry: &[u8]) -> String {
    let byte = |at: usize| entry.get(at).copied().unwrap_or(0);
    let of = |head: usize, wanted: u16| {
        let mut all = route::attributes(entry.get(head..).unwrap_or_default());
        all.find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    };
    let number = |value: Option<&[u8]>| {
        let bytes = value.and_then(|value| value.get(..4)?.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    };
    match table {
        Table::Addresses => format!("address {}/{}", place(of(8, 2).or_else(|| of(8, 1))), byte(1)),
        Table::Labels => format!("label of addresses {}/{}", place(of(12, 1)), byte(2)),
        Table::NextHops => format!("next hop {}", number(of(8, 1))),
        Table::Routes => match of(12, 1) {
            Some(to) => format!("route {}/{}, table {}", place(Some(to)), byte(1), number(of(12, 15))),
            None => format!("default route, table {}", number(of(12, 15))),
        },
        Table::Rules => format!("rule of routing {}", number(of(12, 6))),
        Table::Neighbours => format!("neighbour {}", place(of(12, 1))),
        Table::Proxies => format!("proxy of neighbour {}", place(of(12, 1))),
        Table::Frames => format!("forwarding of frames to {}", hardware(of(12, 2).unwrap_or_default())),
    }
}

/// The addresses of a network, each with the number of its device, in words.
#[must_use]
pub fn addresses(record: &NetworkRecord) -> Vec<(u32, String)> {
    let told = |entry: &ByteBuf| {
        // struct ifaddrmsg: family, length of the prefix, flags, scope, device.
        let device = u32::from_ne_bytes(entry.get(4..8)?.try_into().ok()?);
        let title = self::entry(Table::Addresses, entry);
        Some((device, title.trim_start_matches("address ").to_owned()))
    };
    record.addresses.iter().filter_map(told).collect()
}

/// The addresses that a network itself has, each with the number of its device.
pub fn own_addresses(record: &NetworkRecord) -> impl Iterator<Item = (u32, IpAddr)> {
    record.addresses.iter().filter_map(|entry| {
        let device = u32::from_ne_bytes(entry.get(4..8)?.try_into().ok()?);
        let of = |wanted: u16| {
            route::attributes(entry.get(8..)?).find_map(|(kind, value)| (kind == wanted).then_some(value))
        };
        // IFA_LOCAL, which that of IPv6 have only where the other end has another one; IFA_ADDRESS.
        Some((device, ip(of(2).or_else(|| of(1))?)?))
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
    let six = <[u8; 16]>::try_from(bytes).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)));
    four.or(six).ok()
}

fn place(bytes: Option<&[u8]>) -> String {
    let bytes = bytes.unwrap_or_default();
    ip(bytes).map_or_else(|| hardware(bytes), |address| address.to_string())
}

fn hardware(bytes: &[u8]) -> String {
    let words: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    words.join(":")
}
