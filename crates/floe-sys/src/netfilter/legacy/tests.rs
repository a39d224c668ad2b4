//! Rules that iptables-legacy and ip6tables-legacy make, in a network namespace of each test's own.

use super::{Asked, LAYOUTS, LegacyTable, differing, is_carried, load, read};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};
use std::process::Command;

const RULES: &str = include_str!("tests.rules");

/// A network namespace with these rules; `None` where what makes them is not installed.
fn with(rules: &str) -> Option<Vec<LegacyTable>> {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    for line in rules.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let Ok(status) = Command::new(words[0]).args(&words[1..]).status() else {
            crate::netfilter::skip(words[0]);
            return None;
        };
        assert!(status.success(), "{line}");
    }
    Some(read().expect("read"))
}

/// As the programs tell them, without when.
fn listed() -> String {
    let save = |program: &str| {
        let saved = Command::new(program).arg("-c").output().expect("save");
        String::from_utf8(saved.stdout).expect("text")
    };
    let text = save("iptables-legacy-save") + &save("ip6tables-legacy-save");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn tables_are_made_again() {
    let Some(tables) = with(RULES) else { return };
    assert!(tables.len() > 5, "{}", tables.len());
    for table in &tables {
        let names = table.extensions().expect("whole");
        assert!(names.iter().all(|name| is_carried(name)), "{names:?}");
    }
    let text = listed();
    assert!(text.contains("[7:900]"), "{text}");
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    tables.iter().try_for_each(load).expect("load");
    assert_eq!(differing(&tables, &read().expect("read"), true), None);
    assert_eq!(listed(), text);
}

#[test]
fn what_differs_is_named() {
    let rule = "iptables-legacy -A INPUT -s 1.2.3.4 -c 3 400 -j DROP";
    let Some(tables) = with(rule) else { return };
    let counted = with(&rule.replace("3 400", "4 500")).expect("iptables-legacy");
    assert_eq!(differing(&tables, &counted, false), None);
    let title = Some("filter of iptables-legacy".to_owned());
    assert_eq!(differing(&tables, &counted, true), title);
    let other = with(&rule.replace("1.2.3.4", "1.2.3.5")).expect("iptables-legacy");
    assert_eq!(differing(&tables, &other, false), title);
    assert_eq!(differing(&tables, &[], false), title);
    assert_eq!(differing(&[], &tables, false), title);
}

#[test]
fn what_is_no_table_is_refused() {
    let Some(tables) = with("iptables-legacy -A INPUT -p tcp --dport 7 -j LOG") else {
        return;
    };
    let table = tables[0].clone();
    let changed = |change: &dyn Fn(&mut LegacyTable)| {
        let mut table = table.clone();
        change(&mut table);
        table
    };
    for bad in [
        changed(&|table| table.family = 7),
        changed(&|table| table.name = "filte".to_owned()),
        changed(&|table| table.name = "x".repeat(40)),
        changed(&|table| table.begins.truncate(4)),
        changed(&|table| table.entries.truncate(300)),
        // Lengths of an entry, of its target and of a match.
        changed(&|table| table.entries[90] = 1),
        changed(&|table| table.entries[88..90].fill(255)),
        changed(&|table| table.entries[112] = 0),
    ] {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        assert_eq!(bad.extensions(), None);
        assert_eq!(load(&bad), Err(Errno::EINVAL));
        assert!(read().expect("read").is_empty());
    }
    // Whole, but not what the kernel takes.
    let bad = changed(&|table| table.begins[1] = 8);
    assert_eq!(load(&bad), Err(Errno::EINVAL));
}

#[test]
fn tables_of_arp_are_made_again() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    // Asking makes it.
    let asked = Asked::open(&LAYOUTS[2]).expect("a socket").info("filter");
    if asked.err() == Some(Errno::ENOPROTOOPT) {
        crate::netfilter::skip("arp_tables");
        return;
    }
    let mut tables = read().expect("read");
    assert_eq!(tables[0].extensions().expect("whole"), ["", "", "", "ERROR"]);
    // The verdict of the first entry, and what it has counted.
    tables[0].entries[176] = 9;
    tables[0].entries[192 + 32..][..4].copy_from_slice(&(-1_i32).to_ne_bytes());
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    load(&tables[0]).expect("load");
    assert_eq!(differing(&tables, &read().expect("read"), true), None);
}
