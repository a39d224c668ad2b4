//! The pair of devices that joins a sandbox's network to the host's: `floe run --net new`.
//!
//! ```text
//! host                                                     sandbox
//!   floeNNNN 10.241.x.y   ═══════════ veth ═══════════   eth0 10.241.x.y+1, default route to the other end
//! ```
//! Each pair has four addresses of 10.241.0.0/16 to itself; which ones follows from the sandbox's name, unless the host has
//! them already. What leaves the host has the host's address (masquerade), if it forwards at all: whether it does is the
//! host's own affair, and floe leaves `net.ipv4.ip_forward` as it is.
//!
//! An ordinary user has the same, but in a network namespace between ([`crate::uplink`]).
//!
//! Nothing of it outlives the sandbox. The devices go with its network namespace, and the rules of the packet filter are in
//! a table that the monitor's netlink socket owns, so that the kernel removes it whatever becomes of the monitor.

use crate::{
    published::{PRIVILEGED, Published},
    uplink::{Carrier, Uplink, number},
};
use floe_sys::{
    namespace::is_in_first_user,
    netfilter::{OpenWay, PublishedPort, Way},
    route::{self, Link as Device, VethEnd, ipv4, ipv4::Network},
};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    net::Ipv4Addr,
    os::fd::{BorrowedFd, OwnedFd},
};

/// The addresses that pairs are given.
const POOL: Ipv4Addr = Ipv4Addr::new(10, 241, 0, 0);
/// Bits of a pair's network.
const BITS: u8 = 30;
/// How many there are.
const PAIRS: u32 = 1 << 14;
/// The device inside.
pub const INSIDE: &str = "eth0";
const UP: u32 = libc::IFF_UP as u32;
/// IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const NO_OWN_ADDRESS: u8 = 1;

/// A pair that a sandbox is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkSpec {
    /// Ports of the host that are to be the sandbox's.
    pub published: Vec<Published>,
    /// The address that it must have; one that is free where `None`.
    pub address: Option<Ipv4Addr>,
}

/// Fails where the caller's sandboxes can't be joined to the host's network.
///
/// # Errors
/// What was attempted, and why it fails.
pub(crate) fn check() -> Result<(), (Errno, String)> {
    if needs_carrier() { chosen().map(drop) } else { Ok(()) }
}

/// How a sandbox is joined to the host's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkState {
    /// The host's device.
    pub device: String,
    /// The host's address on it.
    pub host: Ipv4Addr,
    /// The sandbox's address.
    pub address: Ipv4Addr,
    /// Ports of the host.
    pub published: Vec<Published>,
    /// Whether the host forwarded packets when the sandbox was started; else it reaches the host alone.
    pub forwarded: bool,
    /// What is between the host and it, as for an ordinary user.
    #[serde(default)]
    pub carrier: Option<Carrier>,
}

/// A pair that is there as long as this is.
#[derive(Debug)]
pub struct Link {
    state: LinkState,
    /// Gone before the rules.
    pair: Pair,
    /// The published ports, so that nobody else can have them.
    _ports: Vec<OwnedFd>,
    _way: OpenWay,
    /// What it goes by, where it does not end at the host. It takes the ports, and its network namespace the pair.
    uplink: Option<Uplink>,
}

/// The number of the host's device, which goes with this; `None` where it goes with its network namespace.
#[derive(Debug)]
struct Pair(Option<u32>);

impl LinkState {
    fn of(pair: u32, published: &[Published]) -> Self {
        let first = u32::from(POOL) + 4 * pair;
        Self {
            device: format!("floe{pair:04x}"),
            host: Ipv4Addr::from(first + 1),
            address: Ipv4Addr::from(first + 2),
            published: published.to_vec(),
            forwarded: fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|text| text.trim() == "1"),
            carrier: None,
        }
    }

    /// The pair that gives a sandbox this address, where there is such a one, with nothing between.
    #[must_use]
    pub fn with(address: Ipv4Addr, published: &[Published]) -> Option<Self> {
        let offset = u32::from(address).checked_sub(u32::from(POOL))?;
        (offset / 4 < PAIRS && offset % 4 == 2).then(|| Self::of(offset / 4, published))
    }

    /// What the host's packet filter does for it.
    #[must_use]
    pub fn way(&self) -> Way {
        let port = |port: &Published| PublishedPort {
            protocol: if port.udp { libc::IPPROTO_UDP } else { libc::IPPROTO_TCP } as u8,
            host: port.host,
            inside: port.inside,
        };
        Way {
            device: self.device.clone(),
            host: self.host,
            inside: self.address,
            published: self.published.iter().map(port).collect(),
            withheld: self.carrier.and_then(Carrier::withheld),
        }
    }

    /// Hardware addresses that follow from the others, so that they are the same another time.
    fn hardware(address: Ipv4Addr) -> [u8; 6] {
        let [_, _, third, fourth] = address.octets();
        [0x02, 0xf1, 0x0e, 0, third, fourth]
    }

    fn network(address: Ipv4Addr) -> Network {
        Network { address, bits: BITS }
    }

    /// Why a sandbox can't be given this address here, where it can't.
    ///
    /// # Errors
    /// Those of netlink, and of starting a program.
    pub fn obstacle(&self) -> Result<Option<String>, Errno> {
        if needs_carrier() {
            let found = Carrier::find().map_err(|(error, _)| error)?;
            return Ok(found.err());
        }
        let own = Self::network(self.host);
        let used = ipv4::networks_in_use()?;
        let is_used = used.iter().any(|network| network.overlaps(own));
        Ok(is_used.then(|| "this host has it, or a way to it, already; is the tree still running?".to_owned()))
    }

    /// The first published port that can't be had, and why.
    ///
    /// # Errors
    /// Those of sockets.
    pub fn port_in_the_way(&self) -> Result<Option<(Published, &'static str)>, Errno> {
        let mut held = Vec::with_capacity(self.published.len());
        let for_carrier = needs_carrier();
        for port in &self.published {
            match port.take(for_carrier) {
                Ok(socket) => held.push(socket),
                Err(Errno::EADDRINUSE) => return Ok(Some((*port, "another sandbox or program has the host's port"))),
                Err(Errno::EACCES) => return Ok(Some((*port, PRIVILEGED))),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// What PID 1 is told.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        [self.address.octets(), self.host.octets()].concat()
    }
}

impl Link {
    /// Makes one between the network namespace of the caller, which must have one thread, and another one.
    ///
    /// # Errors
    /// What was attempted, and why it failed.
    pub fn make(spec: &LinkSpec, name: &str, inside: BorrowedFd<'_>) -> Result<Self, (Errno, String)> {
        let for_carrier = needs_carrier();
        let ports = spec.published.iter();
        let ports = ports.map(|port| port.take(for_carrier).map_err(|error| (error, port.why_not(error))));
        let ports = ports.collect::<Result<Vec<_>, _>>()?;
        if !for_carrier {
            return Ok(Self {
                _ports: ports,
                ..Self::make_here((spec, None), name, inside)?
            });
        }
        let carrier = chosen()?;
        let mut uplink = Uplink::new(carrier)?;
        let mut link = uplink.inside(|| Self::make_here((spec, Some(carrier)), name, inside))?;
        // Its number is one in there.
        link.pair.0 = None;
        // The carrier takes them now.
        drop(ports);
        uplink.open(&spec.published)?;
        Ok(Self {
            uplink: Some(uplink),
            ..link
        })
    }

    fn make_here(
        (spec, carrier): (&LinkSpec, Option<Carrier>),
        name: &str,
        inside: BorrowedFd<'_>,
    ) -> Result<Self, (Errno, String)> {
        let failed = |action: &str| {
            let action = action.to_owned();
            move |error| (error, action)
        };
        if let Some(address) = spec.address {
            let state = LinkState::with(address, &spec.published).ok_or((
                Errno::EINVAL,
                format!("give the sandbox the address {address} (it is not of 10.241.0.0/16)"),
            ))?;
            make_pair(&state, inside).map_err(failed("make the pair of network devices that it had"))?;
            return Self::open(LinkState { carrier, ..state });
        }
        let used = ipv4::networks_in_use().map_err(failed("look at the addresses of the host"))?;
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let first = hasher.finish() as u32 % PAIRS;
        for pair in (0..PAIRS).map(|next| (first + next) % PAIRS) {
            let state = LinkState::of(pair, &spec.published);
            let own = LinkState::network(state.host);
            if used.iter().any(|network| network.overlaps(own)) {
                continue;
            }
            match make_pair(&state, inside) {
                Ok(()) => return Self::open(LinkState { carrier, ..state }),
                // Somebody else was faster.
                Err(Errno::EEXIST) => {}
                Err(error) => return Err((error, "make a pair of network devices (veth)".to_owned())),
            }
        }
        Err((
            Errno::EADDRINUSE,
            "find addresses for the sandbox: the host has ways to all of 10.241.0.0/16".to_owned(),
        ))
    }

    fn open(state: LinkState) -> Result<Self, (Errno, String)> {
        let failed = |error| (error, format!("open the way to {} (nf_tables)", state.device));
        let device = route::link(state.device.as_bytes()).map_err(failed)?;
        let pair = Pair(Some(device.index));
        // The rules are there before any packet is.
        let way = OpenWay::open(&format!("floe-net-{}", state.device), &state.way()).map_err(failed)?;
        raise(&state, &device).map_err(failed)?;
        Ok(Self {
            pair,
            _ports: Vec::new(),
            _way: way,
            uplink: None,
            state,
        })
    }

    /// What it is.
    pub fn state(&self) -> &LinkState {
        &self.state
    }

    /// What can be read of when the carrier has ended, where the link has one.
    pub(crate) fn life(&self) -> Option<BorrowedFd<'_>> {
        self.uplink.as_ref().and_then(Uplink::life)
    }

    /// Starts the carrier again: what there is to be said of it.
    pub(crate) fn open_again(&mut self) -> String {
        let Some(uplink) = &mut self.uplink else {
            return String::new();
        };
        let name = uplink.carrier().name();
        let unreached = "the sandbox does not reach the outside any more";
        match uplink.open_again(&self.state.published) {
            Ok(true) => format!("{name} has ended, and was started again: connections with the outside are lost"),
            Ok(false) => format!("{name} has ended again: {unreached}"),
            Err((error, action)) => format!("{name} has ended, and {unreached}: {action}: {}", error.desc()),
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let Some(index) = self.0 else { return };
        match route::remove(index) {
            // It has gone with the sandbox's network.
            Ok(()) | Err(Errno::ENODEV) => {}
            Err(error) => tracing::error!(%error, index, "remove a network device"),
        }
    }
}

/// Whether the caller may not change the host's network, but has the rights of root in a user namespace: a program that makes
/// connections of its own is between then.
#[must_use]
pub fn needs_carrier() -> bool {
    !is_in_first_user().unwrap_or(true)
}

/// Fails where there is none.
fn chosen() -> Result<Carrier, (Errno, String)> {
    Carrier::find()?.map_err(|reason| {
        let other = "--net host has the host's, --net none has none";
        let action = format!("join the sandbox to the host's network as an ordinary user: {reason}; {other}");
        (Errno::ENOENT, action)
    })
}

fn make_pair(state: &LinkState, inside: BorrowedFd<'_>) -> Result<(), Errno> {
    let outer = VethEnd {
        name: &state.device,
        address: Some(LinkState::hardware(state.host)),
        index: 0,
        namespace: None,
    };
    let inner = VethEnd {
        name: INSIDE,
        address: Some(LinkState::hardware(state.address)),
        index: 0,
        namespace: Some(inside),
    };
    route::make_veth(&outer, &inner)
}

/// The host's end.
fn raise(state: &LinkState, device: &Device) -> Result<(), Errno> {
    if !state.published.is_empty() {
        // Programs of the host come from 127.0.0.1.
        let path = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", state.device);
        fs::write(path, "1").map_err(|error| number(&error))?;
    }
    ipv4::give_address(device.index, LinkState::network(state.host))?;
    up(device)
}

fn up(device: &Device) -> Result<(), Errno> {
    let like = Device {
        flags: UP,
        ..device.clone()
    };
    route::set_link(device.index, &like, UP)
}

/// The sandbox's end, in the calling process's network namespace, of which [`LinkState::to_bytes`] has told.
pub fn raise_inside(told: &[u8]) -> Result<(), Errno> {
    let address = |at| {
        let four: Option<[u8; 4]> = told.get(at..at + 4).and_then(|four| four.try_into().ok());
        four.map(Ipv4Addr::from).ok_or(Errno::EPROTO)
    };
    // Of IP version 6 it has no address, which would come when it has been up for some time.
    for (device, _) in route::devices()? {
        if device.name == INSIDE.as_bytes() && device.address_mode.is_some() {
            device.set_address_mode(NO_OWN_ADDRESS)?;
        }
    }
    let device = route::link(INSIDE.as_bytes())?;
    ipv4::give_address(device.index, LinkState::network(address(0)?))?;
    up(&device)?;
    ipv4::route_to_all(device.index, address(4)?)
}

#[cfg(test)]
mod tests {
    use super::{LinkState, PAIRS};

    #[test]
    fn pairs_have_addresses_of_their_own() {
        let [first, second, last] = [0, 1, PAIRS - 1].map(|pair| LinkState::of(pair, &[]));
        assert_eq!(
            (first.host.to_string(), first.address.to_string()),
            ("10.241.0.1".to_owned(), "10.241.0.2".to_owned())
        );
        assert_eq!(
            (second.device.as_str(), second.address.to_string()),
            ("floe0001", "10.241.0.6".to_owned())
        );
        assert_eq!(
            (last.device.as_str(), last.address.to_string()),
            ("floe3fff", "10.241.255.254".to_owned())
        );
        assert!(!LinkState::network(first.host).overlaps(LinkState::network(second.host)));
        assert!(LinkState::network(first.host).overlaps(LinkState::network(first.address)));
    }
}
