//! Tables of x_tables, as iptables-legacy, ip6tables-legacy and arptables-legacy make them: a table is read and replaced whole, as
//! a block of entries. linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h, netfilter_arp/arp_tables.h and
//! netfilter/x_tables.h.
//!
//! ```text
//! entry:  what it compares of a packet, where its target is, where the next entry is, what it has counted
//!         matches: length u16, name [u8; 29], revision u8, what is known of it
//!         target: the same
//! ```
//! What matches and targets keep for themselves while they work the kernel does not tell, and makes anew.

mod entries;
mod extensions;

pub use extensions::is_carried;

use super::message::{NFPROTO_IPV4, NFPROTO_IPV6};
use crate::socket;
use nix::errno::Errno;
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// Bytes of a table's name.
const NAME: usize = 32;
/// Bytes before the entries that are asked for, and before counters that are added.
const ASKED_HEAD: usize = 40;
/// `struct xt_counters`: packets and bytes.
const COUNTERS: usize = 16;
const NFPROTO_ARP: u8 = 3;

/// A table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LegacyTable {
    /// NFPROTO_IPV4, NFPROTO_ARP or NFPROTO_IPV6.
    pub family: u8,
    /// As `filter`.
    pub name: String,
    /// Hooks that it is at, a bit each.
    pub hooks: u32,
    /// Where in its entries each hook begins.
    pub begins: Vec<u32>,
    /// Where the entry is that decides where no other one does.
    pub ends: Vec<u32>,
    /// struct ipt_entry, ip6t_entry or arpt_entry, with matches and targets, one behind the other.
    pub entries: Vec<u8>,
}

/// What differs between families.
struct Layout {
    family: u8,
    /// The list of tables below /proc/net.
    names: &'static str,
    program: &'static str,
    /// All tables that there can be.
    tables: &'static [&'static str],
    domain: i32,
    level: i32,
    /// The first of its options: IPT_BASE_CTL.
    base: i32,
    hooks: usize,
    /// Bytes of an entry without matches and target; what it has counted is at the end of it.
    head: usize,
    /// Where in it the places of its target and of the next entry are.
    places: usize,
}

const IP_TABLES: &[&str] = &["filter", "nat", "mangle", "raw", "security"];

const LAYOUTS: [Layout; 3] = [
    Layout {
        family: NFPROTO_IPV4,
        names: "ip_tables_names",
        program: "iptables-legacy",
        tables: IP_TABLES,
        domain: libc::AF_INET,
        level: libc::SOL_IP,
        base: 64,
        hooks: 5,
        head: 112,
        places: 88,
    },
    Layout {
        family: NFPROTO_IPV6,
        names: "ip6_tables_names",
        program: "ip6tables-legacy",
        tables: IP_TABLES,
        domain: libc::AF_INET6,
        level: libc::SOL_IPV6,
        base: 64,
        hooks: 5,
        head: 168,
        places: 140,
    },
    Layout {
        family: NFPROTO_ARP,
        names: "arp_tables_names",
        program: "arptables-legacy",
        tables: &["filter"],
        domain: libc::AF_INET,
        level: libc::SOL_IP,
        base: 96,
        hooks: 3,
        head: 192,
        places: 164,
    },
];

impl LegacyTable {
    fn layout(&self) -> Option<&'static Layout> {
        LAYOUTS.iter().find(|layout| layout.family == self.family)
    }

    /// The program that makes such tables.
    #[must_use]
    pub fn program(&self) -> &'static str {
        self.layout().map_or("unknown", |layout| layout.program)
    }

    /// Names of its matches and targets; `None` where it can't be a table of a kernel's.
    #[must_use]
    pub fn extensions(&self) -> Option<Vec<String>> {
        let layout = self.layout()?;
        let known = layout.tables.contains(&self.name.as_str());
        let hooked = [&self.begins, &self.ends].iter().all(|all| all.len() == layout.hooks);
        let entries = entries::split(&self.entries, layout)?;
        (known && hooked).then(|| entries.into_iter().flat_map(|entry| entry.extensions).collect())
    }

    /// Where it translates addresses, if it has rules that do: family of packets, hook and priority.
    #[must_use]
    pub fn translating(&self) -> Vec<(u8, u32, u32)> {
        /// Of hooks: before and behind routing, in and out; priorities of linux/netfilter_ipv4.h.
        const PLACES: [(u32, i32); 4] = [(0, -100), (1, 100), (3, -100), (4, 100)];
        let entries = self.layout().and_then(|layout| entries::split(&self.entries, layout));
        // A chain ends with its policy, and all with an entry that none reaches.
        let has_rules = entries.is_some_and(|entries| entries.len() > PLACES.len() + 1);
        if self.name != "nat" || !has_rules {
            return Vec::new();
        }
        let place = |(hook, priority): (u32, i32)| (self.family, hook, priority.cast_unsigned());
        PLACES.map(place).to_vec()
    }

    /// Without what it has counted.
    fn uncounted(&self) -> Self {
        let mut table = self.clone();
        if let Some((layout, entries)) = self.layout().and_then(|layout| {
            let entries = entries::split(&self.entries, layout)?;
            Some((layout, entries))
        }) {
            for entry in entries {
                let end = entry.start + layout.head;
                table.entries[end - COUNTERS..end].fill(0);
            }
        }
        table
    }
}

/// All tables of the calling thread's network namespace, in the order in which they were made; those of families that the kernel does not have, or whose list it does not
/// show, are none.
///
/// # Errors
/// Those of reading the lists, and of getsockopt(2).
pub fn read() -> io::Result<Vec<LegacyTable>> {
    let mut found = Vec::new();
    for layout in &LAYOUTS {
        let names = match std::fs::read_to_string(format!("/proc/thread-self/net/{}", layout.names)) {
            Ok(names) => names,
            // Not in this kernel.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            // Made together with its user namespace (clone(2)), before that knew any user: the list is the host's root's then.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => continue,
            Err(error) => return Err(error),
        };
        // The newest stands first.
        for name in names.lines().rev() {
            found.push(Asked::open(layout)?.table(name)?);
        }
    }
    Ok(found)
}

/// Makes an empty table in the calling thread's network namespace: whether the kernel can.
///
/// # Errors
/// Those of getsockopt(2): ENOPROTOOPT where it has no ip_tables, ENOENT where it has not the table `filter`.
pub fn try_out() -> Result<(), Errno> {
    Asked::open(&LAYOUTS[0])?.info("filter").map(drop)
}

/// Makes a table in the calling thread's network namespace.
///
/// # Errors
/// What the kernel says to it; EINVAL also where it can't be one.
pub fn load(table: &LegacyTable) -> Result<(), Errno> {
    let layout = table.layout().ok_or(Errno::EINVAL)?;
    table.extensions().ok_or(Errno::EINVAL)?;
    let entries = entries::split(&table.entries, layout).ok_or(Errno::EINVAL)?;
    let asked = Asked::open(layout)?;
    let before = asked.info(&table.name)?;
    // struct ipt_replace.
    let mut request = named(&table.name);
    let size = u32::try_from(table.entries.len()).map_err(|_| Errno::E2BIG)?;
    let count = entries.len() as u32;
    for number in [table.hooks, count, size]
        .iter()
        .chain(&table.begins)
        .chain(&table.ends)
    {
        request.extend(number.to_ne_bytes());
    }
    request.extend(before.count.to_ne_bytes());
    request.resize(request.len().next_multiple_of(8), 0);
    asked.replace(request, before.count, &table.entries)?;
    // struct xt_counters_info.
    let mut counted = named(&table.name);
    counted.extend(count.to_ne_bytes());
    counted.resize(ASKED_HEAD, 0);
    for entry in &entries {
        let end = entry.start + layout.head;
        counted.extend(&table.entries[end - COUNTERS..end]);
    }
    asked.set(layout.base + 1, &counted)
}

/// The first of these tables that is not the same in both; with `is_quiet` no packet has come between.
#[must_use]
pub fn differing(before: &[LegacyTable], now: &[LegacyTable], is_quiet: bool) -> Option<String> {
    let same =
        |one: &LegacyTable, other: &LegacyTable| one == other || !is_quiet && one.uncounted() == other.uncounted();
    let title = |table: &LegacyTable| format!("{} of {}", table.name, table.program());
    let mut both = before.iter().zip(now);
    let (one, other) = (before.len(), now.len());
    let differs = both.find(|(one, other)| !same(one, other));
    differs
        .map(|(one, _)| title(one))
        .or_else(|| before.get(other).map(title))
        .or_else(|| now.get(one).map(title))
}

fn named(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME, 0);
    bytes
}

/// A socket by which tables of a family are asked for.
struct Asked {
    layout: &'static Layout,
    socket: OwnedFd,
}

/// struct ipt_getinfo.
struct Info {
    hooks: u32,
    begins: Vec<u32>,
    ends: Vec<u32>,
    count: u32,
    size: u32,
}

impl Asked {
    fn open(layout: &'static Layout) -> Result<Self, Errno> {
        let socket = socket::new(layout.domain, libc::SOCK_DGRAM, 0)?;
        Ok(Self { layout, socket })
    }

    fn info(&self, name: &str) -> Result<Info, Errno> {
        let hooks = self.layout.hooks;
        let mut bytes = named(name);
        bytes.resize(NAME + 4 * (3 + 2 * hooks), 0);
        self.get(self.layout.base, &mut bytes)?;
        let words = bytes[NAME..].chunks_exact(4);
        let words: Vec<u32> = words
            .map(|four| u32::from_ne_bytes(four.try_into().expect("four bytes")))
            .collect();
        Ok(Info {
            hooks: words[0],
            begins: words[1..=hooks].to_vec(),
            ends: words[hooks + 1..=2 * hooks].to_vec(),
            count: words[2 * hooks + 1],
            size: words[2 * hooks + 2],
        })
    }

    fn table(&self, name: &str) -> Result<LegacyTable, Errno> {
        let info = self.info(name)?;
        // struct ipt_get_entries.
        let mut bytes = named(name);
        bytes.extend(info.size.to_ne_bytes());
        bytes.resize(ASKED_HEAD + info.size as usize, 0);
        self.get(self.layout.base + 1, &mut bytes)?;
        Ok(LegacyTable {
            family: self.layout.family,
            name: name.to_owned(),
            hooks: info.hooks,
            begins: info.begins,
            ends: info.ends,
            entries: bytes.split_off(ASKED_HEAD),
        })
    }

    /// Asks for something that is told in place of what is asked with.
    fn get(&self, option: i32, bytes: &mut [u8]) -> Result<(), Errno> {
        let mut length = libc::socklen_t::try_from(bytes.len()).map_err(|_| Errno::E2BIG)?;
        // SAFETY: the kernel writes no more than `length`, which are the bytes that are borrowed.
        let got = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                self.layout.level,
                option,
                bytes.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        Errno::result(got).map(drop)
    }

    fn set(&self, option: i32, bytes: &[u8]) -> Result<(), Errno> {
        use std::os::fd::AsFd;
        socket::set_option(self.socket.as_fd(), self.layout.level, option, bytes)
    }

    /// Replaces a table that has so many entries. The request is all before the place to which the kernel writes what these have
    /// counted.
    fn replace(&self, mut request: Vec<u8>, before: u32, entries: &[u8]) -> Result<(), Errno> {
        let mut counted = vec![0_u8; COUNTERS * before as usize];
        request.extend((counted.as_mut_ptr() as usize).to_ne_bytes());
        request.extend(entries);
        let length = libc::socklen_t::try_from(request.len()).map_err(|_| Errno::E2BIG)?;
        // SAFETY: the kernel reads `length` bytes of `request`, and writes counters of as many entries to `counted` as the request
        // says, for which it has room: `before` stands in both. It fails where the table has another number of them.
        let set = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                self.layout.level,
                self.layout.base,
                request.as_ptr().cast(),
                length,
            )
        };
        Errno::result(set).map(drop)
    }
}

#[cfg(test)]
mod tests;
