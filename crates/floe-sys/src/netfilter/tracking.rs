//! The connections that a network namespace tracks, with where their packets are sent instead: nf_conntrack.
//! linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.

use super::{message::*, open, perform_alone};
use crate::route::{attributes, netfilter};
use nix::errno::Errno;

const SUBSYSTEM: u16 = 1;
const SUBSYSTEM_EXPECTED: u16 = 2;
const IPCTNL_MSG_CT_NEW: u16 = 0;
const IPCTNL_MSG_CT_GET: u16 = 1;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_NAT_SRC: u16 = 6;
const CTA_NAT_DST: u16 = 13;
const CTA_SYNPROXY: u16 = 24;
/// CTA_TUPLE_ORIG, STATUS, TIMEOUT, MARK, ZONE, LABELS, SYNPROXY: what is told back as it was told.
const KEPT: [u16; 7] = [CTA_TUPLE_ORIG, CTA_STATUS, 7, 8, 18, 22, CTA_SYNPROXY];
/// What can't be: CTA_HELP, TUPLE_MASTER, SEQ_ADJ_ORIG, SEQ_ADJ_REPLY.
const HELPED: [u16; 4] = [5, 14, 15, 16];
const IPS_SRC_NAT: u32 = 1 << 4;
const IPS_DST_NAT: u32 = 1 << 5;
/// IPS_OFFLOAD, IPS_HW_OFFLOAD: a flowtable has it, which will find it again.
const OFFLOADED: u32 = 1 << 14 | 1 << 15;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_NAT_V4_MINIP: u16 = 1;
const CTA_NAT_V4_MAXIP: u16 = 2;
const CTA_NAT_PROTO: u16 = 3;
const CTA_NAT_V6_MINIP: u16 = 4;
const CTA_NAT_V6_MAXIP: u16 = 5;
const CTA_PROTOINFO_TCP: u16 = 1;
/// CTA_PROTOINFO_TCP_FLAGS_ORIGINAL and _REPLY: struct nf_ct_tcp_flags, flags and which of them are told.
const TCP_FLAGS: [u16; 2] = [4, 5];
/// `struct nfgenmsg`.
const HEAD: usize = 4;

/// A connection: its family and attributes, as they are told to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracked {
    /// AF_INET or AF_INET6.
    pub family: u8,
    /// CTA_*.
    pub attributes: Vec<u8>,
}

/// What the calling thread's network namespace tracks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tracking {
    /// Connections that can be told back.
    pub connections: Vec<Tracked>,
    /// How many have helpers, belong to others, or are expected: of which more is known than is told.
    pub helped: usize,
}

/// All that is tracked in the calling thread's network namespace.
///
/// # Errors
/// Those of netlink: EINTR where it changes meanwhile.
pub fn read() -> Result<Tracking, Errno> {
    let mut found = Tracking::default();
    if count() == Some(0) {
        return Ok(found);
    }
    let told = match netfilter(SUBSYSTEM << 8 | IPCTNL_MSG_CT_GET, &[0; HEAD]) {
        // No connection tracking here.
        Err(Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EINVAL) => return Ok(found),
        told => told?,
    };
    for answer in told {
        let (Some(family), Some(all)) = (answer.first(), answer.get(HEAD..)) else {
            return Err(Errno::EPROTO);
        };
        if attributes(all).any(|(kind, _)| HELPED.contains(&kind)) {
            found.helped += 1;
        } else if let Some(attributes) = told_back(all) {
            found.connections.push(Tracked {
                family: *family,
                attributes,
            });
        }
    }
    found.helped += netfilter(SUBSYSTEM_EXPECTED << 8 | IPCTNL_MSG_CT_GET, &[0; HEAD])?.len();
    Ok(found)
}

/// How many they are, where this is told (Documentation/networking/nf_conntrack-sysctl.rst). The kernel has one table for those of all
/// namespaces and goes through all of it for whoever asks for some.
fn count() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    text.ok()?.trim().parse().ok()
}

/// Has connections tracked in the calling thread's network namespace. What is tracked already stays as it is.
///
/// # Errors
/// Those of netlink.
pub fn load(connections: &[Tracked]) -> Result<(), Errno> {
    let socket = open()?;
    for connection in connections {
        let body = [&[connection.family, 0, 0, 0], &connection.attributes[..]].concat();
        match perform_alone(&socket, SUBSYSTEM << 8 | IPCTNL_MSG_CT_NEW, NEW, &body) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// `None` for one with another address but no ports, as of ping(8): its next packet begins it anew.
fn told_back(all: &[u8]) -> Option<Vec<u8>> {
    let of = |wanted| {
        attributes(all)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let status = u32::from_be_bytes(of(CTA_STATUS)?.try_into().ok()?);
    let mut bytes = Vec::new();
    let mut message = Message::at_end_of(&mut bytes);
    for (kind, value) in attributes(all).filter(|(kind, _)| KEPT.contains(kind)) {
        match kind {
            CTA_STATUS => message.number(kind, status & !OFFLOADED),
            CTA_TUPLE_ORIG => message.attribute(kind | NESTED, value),
            // One that was told back has it in any case.
            CTA_SYNPROXY if attributes(value).all(|(_, number)| number == [0; 4]) => {}
            _ => message.attribute(kind, value),
        }
    }
    if let Some(state) = of(CTA_PROTOINFO) {
        message.nest(CTA_PROTOINFO, |nested| protocol_state(state, nested));
    }
    let (original, reply) = (of(CTA_TUPLE_ORIG)?, of(CTA_TUPLE_REPLY)?);
    if status & (IPS_SRC_NAT | IPS_DST_NAT) == 0 {
        message.attribute(CTA_TUPLE_REPLY | NESTED, reply);
        return Some(bytes);
    }
    // The kernel takes the answers' ends as without translation, and then how the ends are translated.
    let (original, reply) = (Ends::of(original)?, Ends::of(reply)?);
    message.nest(CTA_TUPLE_REPLY, |tuple| original.swapped().write(tuple));
    for (bit, kind, ip, port) in [
        (IPS_SRC_NAT, CTA_NAT_SRC, reply.to, reply.to_port),
        (IPS_DST_NAT, CTA_NAT_DST, reply.from, reply.from_port),
    ] {
        if status & bit != 0 {
            message.nest(kind, |nat| {
                let kinds = match ip.len() {
                    4 => [CTA_NAT_V4_MINIP, CTA_NAT_V4_MAXIP],
                    _ => [CTA_NAT_V6_MINIP, CTA_NAT_V6_MAXIP],
                };
                kinds.iter().for_each(|kind| nat.attribute(*kind, ip));
                // CTA_PROTONAT_PORT_MIN and _MAX.
                nat.nest(CTA_NAT_PROTO, |range| {
                    [1, 2].iter().for_each(|kind| range.attribute(*kind, port));
                });
            });
        }
    }
    Some(bytes)
}

const NESTED: u16 = libc::NLA_F_NESTED as u16;

/// That of TCP, whose flags are told together with which of them are.
fn protocol_state(state: &[u8], nested: &mut Message<'_>) {
    for (kind, value) in attributes(state) {
        if kind != CTA_PROTOINFO_TCP {
            nested.attribute(kind | NESTED, value);
            continue;
        }
        nested.nest(kind, |tcp| {
            for (kind, value) in attributes(value) {
                match value {
                    [flags, _] if TCP_FLAGS.contains(&kind) => tcp.attribute(kind, &[*flags, 0xff]),
                    _ => tcp.attribute(kind, value),
                }
            }
        });
    }
}

/// Both ends of one direction.
struct Ends<'a> {
    /// AF_INET's or AF_INET6's attributes, CTA_IP_*_SRC.
    kind: u16,
    from: &'a [u8],
    to: &'a [u8],
    /// CTA_PROTO_NUM.
    protocol: &'a [u8],
    from_port: &'a [u8],
    to_port: &'a [u8],
}

impl<'a> Ends<'a> {
    fn of(tuple: &'a [u8]) -> Option<Self> {
        fn find(list: &[u8], wanted: u16) -> Option<&[u8]> {
            attributes(list)
                .find(|(kind, _)| *kind == wanted)
                .map(|(_, value)| value)
        }
        let (ip, protocol) = (find(tuple, CTA_TUPLE_IP)?, find(tuple, CTA_TUPLE_PROTO)?);
        // CTA_IP_V4_SRC and CTA_IP_V6_SRC, each with its _DST behind.
        let kind = [1, 3].into_iter().find(|kind| find(ip, *kind).is_some())?;
        Some(Self {
            kind,
            from: find(ip, kind)?,
            to: find(ip, kind + 1)?,
            protocol: find(protocol, 1)?,
            from_port: find(protocol, CTA_PROTO_SRC_PORT)?,
            to_port: find(protocol, CTA_PROTO_DST_PORT)?,
        })
    }

    fn swapped(&self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            from_port: self.to_port,
            to_port: self.from_port,
            ..*self
        }
    }

    fn write(&self, tuple: &mut Message<'_>) {
        tuple.nest(CTA_TUPLE_IP, |ip| {
            ip.attribute(self.kind, self.from);
            ip.attribute(self.kind + 1, self.to);
        });
        tuple.nest(CTA_TUPLE_PROTO, |protocol| {
            protocol.attribute(1, self.protocol);
            protocol.attribute(CTA_PROTO_SRC_PORT, self.from_port);
            protocol.attribute(CTA_PROTO_DST_PORT, self.to_port);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{Tracking, attributes, load, read};
    use nix::sched::{CloneFlags, unshare};
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        process::Command,
    };

    const RULES: &str = "table ip t {
        chain o { type nat hook output priority -100; tcp dport 7000 dnat to 127.0.0.1:7001; }
        chain p { type nat hook postrouting priority 100; tcp dport 7001 snat to 127.0.0.9:4000-5000; }
        chain i { type filter hook input priority 0; policy drop; ct state new tcp dport 7001 ct mark set 7 accept; ct state established accept; }
    }";

    fn nft(line: &[&str]) -> bool {
        Command::new("nft")
            .args(line)
            .status()
            .is_ok_and(|status| status.success())
    }

    /// Without CTA_TIMEOUT, which runs.
    fn lasting(tracking: &Tracking) -> Vec<Vec<(u16, &[u8])>> {
        let all = tracking.connections.iter();
        all.map(|one| attributes(&one.attributes).filter(|(kind, _)| *kind != 7).collect())
            .collect()
    }

    #[test]
    fn a_translated_connection_goes_on_when_it_is_told_back() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        crate::network::raise_loopback().expect("lo");
        let rules = RULES.replace("; }", ";\n}").replace("table ip t {", "table ip t {\n");
        if !nft(&[&rules]) {
            crate::netfilter::skip("nft");
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:7001").expect("bind");
        let mut one = TcpStream::connect("127.0.0.1:7000").expect("connect");
        let (mut other, from) = listener.accept().expect("accept");
        assert_eq!(from.ip().to_string(), "127.0.0.9");
        let tracked = read().expect("read");
        assert_eq!((tracked.connections.len(), tracked.helped), (1, 0));
        for told in [true, false] {
            let forget = Command::new("conntrack").arg("-F").output();
            if !forget.is_ok_and(|output| output.status.success()) {
                crate::netfilter::skip("conntrack");
                return;
            }
            assert!(read().expect("read").connections.is_empty());
            if told {
                load(&tracked.connections).expect("load");
                assert_eq!(lasting(&read().expect("read")), lasting(&tracked));
                load(&tracked.connections).expect("once more");
            }
            one.write_all(b"x").expect("write");
            let patience = Some(std::time::Duration::from_millis(if told { 20_000 } else { 300 }));
            other.set_read_timeout(patience).expect("a timeout");
            assert_eq!(other.read(&mut [0; 9]).is_ok(), told);
        }
    }
}
