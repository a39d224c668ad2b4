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
//! Nothing of it outlives the sandbox. The devices go with its network namespace, and the rules of the packet filter are in
//! a table that the monitor's netlink socket owns, so that the kernel removes it whatever becomes of the monitor.

use floe_sys::{
    netfilter::{OpenWay, PublishedPort, Way},
    route::{self, Link as Device, VethEnd, ipv4, ipv4::Network},
};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket},
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    net::Ipv4Addr,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
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

/// A port of the host that is one of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Whether it is one of UDP, not of TCP.
    pub udp: bool,
    /// The host's port.
    pub host: u16,
    /// The sandbox's.
    pub inside: u16,
}

impl Published {
    /// Takes the host's port, that no other sandbox and no program has it as long as the socket is there. No packet comes to
    /// the socket: rules lead all elsewhere.
    ///
    /// # Errors
    /// EADDRINUSE where somebody has it.
    fn take(self) -> Result<OwnedFd, Errno> {
        let kind = if self.udp { SockType::Datagram } else { SockType::Stream };
        let taken = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
        bind(taken.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, self.host))?;
        Ok(taken)
    }
}

impl std::fmt::Display for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}{}", self.host, self.inside, if self.udp { "/udp" } else { "" })
    }
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
}

/// A pair that is there as long as this is.
#[derive(Debug)]
pub struct Link {
    state: LinkState,
    /// The number of the host's device.
    index: u32,
    /// The published ports, so that nobody else can have them.
    _ports: Vec<OwnedFd>,
    _way: OpenWay,
}

impl LinkState {
    fn of(pair: u32, published: &[Published]) -> Self {
        let first = u32::from(POOL) + 4 * pair;
        Self {
            device: format!("floe{pair:04x}"),
            host: Ipv4Addr::from(first + 1),
            address: Ipv4Addr::from(first + 2),
            published: published.to_vec(),
            forwarded: fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|text| text.trim() == "1"),
        }
    }

    /// The pair that gives a sandbox this address, where there is such a one.
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
    /// Those of netlink.
    pub fn obstacle(&self) -> Result<Option<&'static str>, Errno> {
        if !floe_sys::namespace::is_in_first_user().unwrap_or(true) {
            return Ok(Some("only root may join a network to the host's"));
        }
        let own = Self::network(self.host);
        let used = ipv4::networks_in_use()?;
        let is_used = used.iter().any(|network| network.overlaps(own));
        Ok(is_used.then_some("this host has it, or a way to it, already; is the tree still running?"))
    }

    /// The first published port that somebody else has.
    ///
    /// # Errors
    /// Those of sockets.
    pub fn taken_port(&self) -> Result<Option<Published>, Errno> {
        let mut held = Vec::with_capacity(self.published.len());
        for port in &self.published {
            match port.take() {
                Ok(socket) => held.push(socket),
                Err(Errno::EADDRINUSE) => return Ok(Some(*port)),
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
    /// Makes one between the calling thread's network namespace and another one.
    ///
    /// # Errors
    /// What was attempted, and why it failed.
    pub fn make(spec: &LinkSpec, name: &str, inside: BorrowedFd<'_>) -> Result<Self, (Errno, String)> {
        let failed = |action: &str| {
            let action = action.to_owned();
            move |error| (error, action)
        };
        if !floe_sys::namespace::is_in_first_user().unwrap_or(true) {
            let action =
                "join the sandbox to the host's network, which only root may (--net host has it, --net none has none)";
            return Err((Errno::EPERM, action.to_owned()));
        }
        let ports = spec.published.iter().map(|port| {
            let action = || format!("publish port {port} (does another sandbox or program have the host's?)");
            port.take().map_err(|error| (error, action()))
        });
        let ports = ports.collect::<Result<Vec<_>, _>>()?;
        if let Some(address) = spec.address {
            let state = LinkState::with(address, &spec.published).ok_or((
                Errno::EINVAL,
                format!("give the sandbox the address {address} (it is not of 10.241.0.0/16)"),
            ))?;
            make_pair(&state, inside).map_err(failed("make the pair of network devices that it had"))?;
            return Self::open(state, ports);
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
                Ok(()) => return Self::open(state, ports),
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

    fn open(state: LinkState, ports: Vec<OwnedFd>) -> Result<Self, (Errno, String)> {
        let failed = |error| (error, format!("open the way to {} (nf_tables)", state.device));
        let device = route::link(state.device.as_bytes()).map_err(failed)?;
        // The rules are there before any packet is.
        let opened = OpenWay::open(&format!("floe-net-{}", state.device), &state.way())
            .and_then(|way| raise(&state, &device).map(|()| way));
        match opened {
            Ok(way) => Ok(Self {
                state,
                index: device.index,
                _ports: ports,
                _way: way,
            }),
            Err(error) => {
                remove(device.index);
                Err(failed(error))
            }
        }
    }

    /// What it is.
    pub fn state(&self) -> &LinkState {
        &self.state
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        remove(self.index);
    }
}

fn remove(index: u32) {
    match route::remove(index) {
        // It has gone with the sandbox's network.
        Ok(()) | Err(Errno::ENODEV) => {}
        Err(error) => tracing::error!(%error, index, "remove a network device"),
    }
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
        fs::write(path, "1").map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
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
