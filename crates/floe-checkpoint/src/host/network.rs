//! Sockets and connections.

use super::{
    ALL, Finding, NONE, Probe, TREES,
    attempt::{Caller, words},
};
use floe_sandbox::Carrier;
use floe_sys::{
    netfilter::{Hold, legacy, sets},
    socket,
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsFd,
};

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "socket diagnostics",
        used_for: "sockets: who is connected with whom",
        advice: "a kernel with CONFIG_UNIX_DIAG and CONFIG_INET_DIAG",
        used_by: TREES,
        needed_by: NONE,
        ask: diagnostics,
    },
    Probe {
        name: "TCP_REPAIR",
        used_for: "TCP connections, with what is on its way in them",
        advice: "run floe as root (CAP_NET_ADMIN), or the tree in a network namespace of its own",
        used_by: TREES,
        needed_by: NONE,
        ask: repair,
    },
    Probe {
        name: "nf_tables",
        used_for: "--tcp established: holding back packets while a tree is away",
        advice: "a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET; CAP_NET_ADMIN",
        used_by: TREES,
        needed_by: NONE,
        ask: tables,
    },
    Probe {
        name: "pasta, slirp4netns",
        used_for: "--net new, -p: a network that is joined to the host's, for an ordinary user",
        advice: "install pasta (package passt) or slirp4netns; /dev/net/tun for everybody (chmod 666); for pasta a default route; --net host or none does without",
        used_by: ALL,
        needed_by: NONE,
        ask: carrier,
    },
    Probe {
        name: "x_tables",
        used_for: "trees with rules of iptables-legacy in a network namespace of their own",
        advice: "a kernel with CONFIG_IP_NF_IPTABLES_LEGACY and CONFIG_IP_NF_FILTER; CAP_NET_ADMIN",
        used_by: TREES,
        needed_by: NONE,
        ask: legacy_tables,
    },
    Probe {
        name: "ip_set",
        used_for: "trees with sets of ipset in a network namespace of their own",
        advice: "a kernel with CONFIG_IP_SET and CONFIG_IP_SET_LIST_SET; CAP_NET_ADMIN",
        used_by: TREES,
        needed_by: NONE,
        ask: ip_sets,
    },
];

fn diagnostics(_: &Caller) -> Finding {
    match socket::unix_sockets() {
        Ok(_) => Finding::Yes("unix sockets are listed".to_owned()),
        Err(error) => Finding::No(words(&error)),
    }
}

fn repair(caller: &Caller) -> Finding {
    let switch = || -> io::Result<i32> {
        let made = socket::new(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        socket::set_option(made.as_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, &1_i32.to_ne_bytes())?;
        Ok(0)
    };
    match (switch(), caller.attempt(libc::CLONE_NEWNET, switch)) {
        (Ok(_), _) => Finding::Yes("in this network".to_owned()),
        (Err(error), Ok(_)) => Finding::Partly(format!(
            "only in a network namespace of one's own; in this one: {}",
            words(&error)
        )),
        (Err(error), Err(_)) => Finding::No(words(&error)),
    }
}

fn tables(caller: &Caller) -> Finding {
    let result = caller.attempt(libc::CLONE_NEWNET, || {
        let end = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        // In this namespace there is nobody else.
        Ok(Hold::take("floe-check", &[(end(1), end(2))], None).map(|_| 0)?)
    });
    match result {
        Ok(_) if caller.is_privileged() => Finding::Yes("a table was made in a network namespace".to_owned()),
        Ok(_) => Finding::Partly("only in a network namespace of one's own".to_owned()),
        Err(error) => Finding::No(words(&error)),
    }
}

fn carrier(caller: &Caller) -> Finding {
    if caller.is_of_host && caller.is_privileged() {
        return Finding::Yes("not needed by root, who has a pair of devices (veth)".to_owned());
    }
    let carrier = match Carrier::find() {
        Ok(Ok(carrier)) => carrier,
        Ok(Err(lacking)) => return Finding::No(lacking),
        Err((error, action)) => return Finding::No(format!("{action}: {}", error.desc())),
    };
    // Any namespace has a user namespace made for it.
    match caller.attempt(libc::CLONE_NEWUTS, || Ok(floe_sandbox::try_uplink(carrier))) {
        Ok(lacking) if lacking.is_empty() => Finding::Yes(format!("{} was started{}", carrier.name(), caller.place())),
        Ok(lacking) => Finding::No(lacking),
        Err(error) => Finding::No(words(&error)),
    }
}

fn legacy_tables(caller: &Caller) -> Finding {
    let result = caller.attempt(libc::CLONE_NEWNET, || Ok(legacy::try_out().map(|()| 0)?));
    made(result, "a table was made in a network namespace")
}

fn ip_sets(caller: &Caller) -> Finding {
    let result = caller.attempt(libc::CLONE_NEWNET, || Ok(sets::try_out().map(|()| 0)?));
    made(result, "a set was made in a network namespace")
}

fn made(result: io::Result<i32>, found: &str) -> Finding {
    match result {
        Ok(_) => Finding::Yes(found.to_owned()),
        Err(error) => Finding::No(words(&error)),
    }
}
