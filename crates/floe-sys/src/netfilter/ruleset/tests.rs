//! Rules that nft(8) and iptables-nft(8) make, in a network namespace of each test's own.

use super::{Table, differing, load, read};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};
use std::{
    io::Write,
    process::{Command, Stdio},
};

const RULES: &str = include_str!("tests.nft");

/// A network namespace with these rules; `None` where what makes them is not installed.
fn with(rules: &str) -> Option<Vec<Table>> {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        crate::netfilter::skip("nft");
        return None;
    };
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(rules.as_bytes()).expect("write");
    drop(input);
    assert!(child.wait().expect("wait").success(), "nft");
    Some(read().expect("read"))
}

fn run(line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let status = Command::new(words[0]).args(&words[1..]).status();
    assert!(status.expect("start").success(), "{line}");
}

/// As nft tells them, elements of sets in order and without when they expire.
fn listed() -> String {
    let list = Command::new("nft").args(["-a", "list", "ruleset"]).output();
    let text = String::from_utf8(list.expect("nft").stdout).expect("text");
    let mut parts = text.split("elements = {");
    let mut told = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (elements, behind) = part.split_once('}').expect("an end");
        let plain = elements
            .split(',')
            .map(|one| one.split(" expires ").next().unwrap_or(one).trim());
        let mut plain: Vec<&str> = plain.collect();
        plain.sort_unstable();
        told += &(plain.join(", ") + behind);
    }
    told
}

/// Makes them again in another one.
fn again(tables: &[Table], text: &str) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    load(tables).expect("load");
    assert_eq!(differing(tables, &read().expect("read"), true), None);
    assert_eq!(listed(), text);
}

#[test]
fn rules_of_all_kinds_are_made_again() {
    let Some(tables) = with(RULES) else { return };
    assert_eq!(tables.len(), 6);
    assert_eq!(tables[2].devices(), [b"lo"]);
    again(&tables, &listed());
}

#[test]
fn rules_keep_handles_and_order() {
    let Some(_) = with(RULES) else { return };
    for line in [
        "nft insert rule inet filt in counter",
        "nft delete rule inet filt in handle 14",
        "nft add rule inet filt in position 16 drop",
        "nft insert rule inet filt in position 19 accept",
        "nft replace rule inet filt in handle 20 counter drop",
        "nft delete table ip nat",
        "nft add table ip late",
        "nft add chain ip late c",
    ] {
        run(line);
    }
    again(&read().expect("read"), &listed());
}

#[test]
fn rules_of_iptables_are_made_again() {
    let Some(_) = with("") else { return };
    for line in [
        "iptables-nft -A INPUT -p tcp -m multiport --dports 5,6 -m conntrack --ctstate NEW -m comment --comment hello -j ACCEPT",
        "iptables-nft -A INPUT -p udp -m multiport --sports 7 -m u32 --u32 6&0xFF=1 -j DROP",
        "iptables-nft -t nat -A POSTROUTING -s 10.0.0.0/24 -j MASQUERADE",
        "ip6tables-nft -A FORWARD -p udp --dport 53 -j REJECT",
    ] {
        run(line);
    }
    let tables = read().expect("read");
    assert!(tables.iter().any(|table| !table.extensions().is_empty()));
    again(&tables, &listed());
}

#[test]
fn a_large_set_comes_back() {
    let elements: Vec<String> = (0..5000).map(|i| format!("10.{}.{}.1", i / 250, i % 250)).collect();
    let rules = format!(
        "table ip large {{\n set s {{\n type ipv4_addr\n elements = {{ {} }}\n }}\n }}",
        elements.join(", ")
    );
    let Some(tables) = with(&rules) else { return };
    assert_eq!(tables[0].parts[0].elements.len(), 5000);
    again(&tables, &listed());
}

#[test]
fn what_differs_is_named() {
    let Some(tables) = with(RULES) else { return };
    run("nft add rule inet filt ssh drop");
    assert_eq!(
        differing(&tables, &read().expect("read"), true),
        Some("inet filt".to_owned())
    );
    assert_eq!(differing(&[], &tables, true), Some("inet filt".to_owned()));
}

#[test]
fn what_expires_or_comes_of_packets_makes_no_difference() {
    let Some(tables) = with(RULES) else { return };
    // As if time had passed.
    run("nft delete element inet filt dyn { 1.2.3.4 }");
    assert_eq!(differing(&tables, &read().expect("read"), true), None);
    let rules = "table ip t {\n set fed { type ipv4_addr; size 9; flags dynamic; elements = { 1.1.1.1 } }\n }";
    let Some(tables) = with(rules) else { return };
    run("nft add element ip t fed { 2.2.2.2 }");
    let now = read().expect("read");
    assert_eq!(differing(&tables, &now, false), None);
    assert_eq!(differing(&tables, &now, true), Some("ip t".to_owned()));
}

#[test]
fn handles_that_are_too_far_apart_are_an_error() {
    let mut table = Table {
        family: 2,
        handle: 1 << 40,
        attributes: [&[7, 0, 1, 0], &b"ab\0\0"[..]].concat(),
        parts: Vec::new(),
    };
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    assert_eq!(load(&[table.clone()]), Err(Errno::E2BIG));
    table.handle = 0;
    assert_eq!(load(&[table.clone()]), Err(Errno::EINVAL));
    table.handle = 2000;
    assert_eq!(load(std::slice::from_ref(&table)), Ok(()));
    assert_eq!(read().expect("read")[0].handle, 2000);
}
