//! Holding back the packets of connections whose other ends are outside of the tree, from the look at them until the
//! restored tree is about to run:
//!
//! ```text
//! checkpoint   a table that floe owns      -> a table that stays for a day -> the tree ends
//! restore      a table that floe owns too  -> both removed, repair mode ended -> the tree runs
//! ```
//! A table that floe owns the kernel removes should floe be killed. The lasting one the keeper removes then, unless the
//! tree is ending. Its name follows from the addresses, so that a restore finds it.
//!
//! A network namespace of the tree's own ends with it, and its tables too, once the keeper has ended the sockets that would keep
//! it: until then its devices answer for its addresses.

use super::{Body, Ends, NAME, OtherEnd, TcpMode, outside};
use crate::{
    file::{
        FileError,
        socket::{Keeper, keeper::is_ending},
    },
    ns::network::{self, NetworkSpace},
};
use floe_image::{Image, record::NamespaceOrigin};
use floe_sys::{
    Pid,
    netfilter::{self, Hold, Release, Way},
    packet::Packet,
    socket::{end_orphans, is_somebodys},
};
use nix::errno::Errno;
use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// How long packets are held back for a tree that is away: long after the other ends have given up.
const AWAY: u64 = 24 * 60 * 60 * 1000;

/// The name of the lasting table.
fn name(ends: &[Ends]) -> String {
    let mut ends = ends.to_vec();
    ends.sort_unstable();
    let listed: Vec<String> = ends
        .iter()
        .map(|(local, remote)| format!("{local} {remote}\n"))
        .collect();
    format!("floe-{:08x}-{}", crc32c::crc32c(listed.concat().as_bytes()), ends.len())
}

/// Whether a table that nobody owns has such a name.
pub(crate) fn is_lasting_hold(name: &str) -> bool {
    let parts = name.strip_prefix("floe-").and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(sum, count)| {
        let is_sum = sum.len() == 8 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_sum && !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// The name of a table that this process owns.
fn own_name(ends: &[Ends]) -> String {
    format!("{}-{}", name(ends), std::process::id())
}

fn failed(action: &'static str) -> impl FnOnce(Errno) -> FileError {
    FileError::system(action, "the packets of TCP connections (nf_tables)")
}

/// Packets are held back as long as this is there, and longer if it is told so.
pub struct Held(Vec<HeldPlace>);

/// Those of one network namespace.
struct HeldPlace {
    ends: Vec<Ends>,
    place: Place,
    hold: Hold,
}

/// Where packets are held back.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// In floe's own network namespace, where the connections are.
    Here,
    /// There too: the connections are in one that is joined to it by this way.
    OnTheWay(Way),
    /// In the connections' network namespace, which ends with the tree.
    Within(NetworkSpace),
}

/// Packets are held back for long: when this is dropped, or floe is killed, only if the tree is ending by then.
pub struct Ending<'a> {
    keeper: &'a Keeper,
    releases: Vec<Release>,
    root: Pid,
}

impl Place {
    fn run<T: Send>(
        &self,
        action: &'static str,
        act: impl FnOnce(Option<&Way>) -> Result<T, Errno> + Send,
    ) -> Result<T, FileError> {
        match self {
            Self::Here => act(None).map_err(failed(action)),
            Self::OnTheWay(way) => act(Some(way)).map_err(failed(action)),
            Self::Within(space) => within(space, action, || Ok(act(None)?)),
        }
    }
}

impl Held {
    /// Those of connections, by where they are; `None` where there are none.
    pub(super) fn take(places: Vec<(Place, Vec<Ends>)>) -> Result<Option<Self>, FileError> {
        let taken = places.into_iter().filter(|(_, ends)| !ends.is_empty());
        let taken = taken.map(|(place, ends)| {
            let hold = place.run("hold back", |way| Hold::take(&own_name(&ends), &ends, way))?;
            Ok(HeldPlace { ends, place, hold })
        });
        let taken = taken.collect::<Result<Vec<_>, FileError>>()?;
        Ok((!taken.is_empty()).then_some(Self(taken)))
    }

    /// The descriptors of which each is to be open as long as they are to be held back.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|held| held.hold.as_fd())
    }

    /// Holds them back also when floe has ended.
    pub(in crate::file) fn stay<'a>(&self, keeper: &'a Keeper, root: Pid) -> Result<Ending<'a>, FileError> {
        let mut ending = Ending {
            keeper,
            releases: Vec::new(),
            root,
        };
        for held in &self.0 {
            let name = name(&held.ends);
            let prepare = |_: Option<&Way>| Release::of(&name);
            let release = held.place.run("prepare to hold back", prepare)?;
            // That of an earlier checkpoint, of which the tree was brought back elsewhere.
            release.perform().map_err(failed("hold back anew"))?;
            let (socket, bytes) = release.parts();
            keeper
                .send_at_end(socket.as_fd(), bytes, root)
                .map_err(failed("have an eye on"))?;
            if let Place::Within(space) = &held.place {
                let file = space.file().map_err(|source| system_error("open", source))?;
                keeper
                    .end_orphans(file.as_fd(), &held.ends, root)
                    .map_err(failed("have an eye on"))?;
            }
            ending.releases.push(release);
            let ends = &held.ends;
            held.place
                .run("hold back", |way| netfilter::hold_for(&name, (ends, way), AWAY))?;
        }
        Ok(ending)
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if is_ending(self.root) {
            // What the keeper has to do then is not done yet.
            return;
        }
        for release in &self.releases {
            if let Err(error) = release.perform() {
                tracing::error!(%error, "packets of TCP connections are held back though the tree runs on");
            }
        }
        if let Err(error) = self.keeper.forget() {
            tracing::error!(%error, "the keeper does not hear");
        }
    }
}

/// New connections are held back as long as this is there.
#[derive(Debug)]
pub struct Newcomers(#[expect(dead_code, reason = "it holds back by being there")] Hold);

impl Newcomers {
    /// Where sockets listen in the network namespace of a process, if that is another one than floe's.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn places(inside: Pid) -> Result<Vec<SocketAddr>, FileError> {
        let space = NetworkSpace::of_root(inside);
        let is_floes = space
            .is_floes()
            .map_err(|error| system_error("look at", io::Error::other(error)))?;
        match is_floes {
            true => Ok(Vec::new()),
            false => within(&space, "look for", || Ok(floe_sys::socket::listening()?)),
        }
    }

    /// Those with sockets that listen at these addresses, in the network namespace of a process.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn hold_back(places: &[SocketAddr], inside: Pid) -> Result<Self, FileError> {
        let name = format!("floe-new-{}", std::process::id());
        let space = NetworkSpace::of_root(inside);
        within(&space, "hold back", || Ok(Self(Hold::newcomers(&name, places)?)))
    }
}

/// The connections of an image whose other ends are outside of the tree.
#[derive(Debug)]
pub struct OutsideEnds {
    ends: Vec<OutsideEnd>,
    mode: TcpMode,
    /// Whether the tree comes from another host, which has its addresses still.
    moves: bool,
}

#[derive(Debug)]
struct OutsideEnd {
    id: u32,
    network: u32,
    body: Body,
    route: Route,
}

/// How packets come to an end in a restored tree.
#[derive(Debug, Clone)]
enum Route {
    /// The tree is in floe's own network namespace.
    Here,
    /// Its network is joined to that by this way.
    OnTheWay(Way),
    /// By a device of its network namespace.
    Within,
    /// That has not the address, or pasta is on the way.
    None,
}

/// Such ends made again, in repair mode.
pub(in crate::file) type MadeOutside = Vec<(u32, OwnedFd)>;

/// Tells a restored tree's network namespace by its number.
pub type Spaces<'a> = &'a dyn Fn(u32) -> io::Result<NetworkSpace>;

impl OutsideEnds {
    /// Finds them. `way` is how the tree's network gets joined to floe's own, where it does; `moves` that the tree comes from
    /// another host, which has its addresses still.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn of(image: &Image, (mode, moves): (TcpMode, bool), way: Option<&Way>) -> Result<Self, FileError> {
        let is_here = |network: u32| network == 0 && image.sandbox().net != NamespaceOrigin::Own;
        let link = image.sandbox().link.as_ref().filter(|_| way.is_none());
        let beyond_pasta = link.map(|link| IpAddr::from(link.address));
        let has = |network: u32, address: IpAddr| {
            let mut records = image.networks().iter().filter(|record| record.namespace == network);
            records.any(|record| network::own_addresses(record).any(|(_, own)| own == address.to_canonical()))
        };
        let mut ends = Vec::new();
        for record in image.open_files().iter().filter(|record| record.kind == NAME) {
            let body = super::possible(record)?;
            if !matches!(body.other, OtherEnd::Outside(_)) {
                continue;
            }
            let address = body.ends().0.ip();
            let joined = way.filter(|way| record.network == 0 && way.inside == address);
            let route = match joined {
                Some(way) => Route::OnTheWay(way.clone()),
                None if record.network == 0 && beyond_pasta == Some(address) => Route::None,
                None if is_here(record.network) => Route::Here,
                None if has(record.network, address) => Route::Within,
                None => Route::None,
            };
            ends.push(OutsideEnd {
                id: record.id,
                network: record.network,
                body,
                route,
            });
        }
        Ok(Self { ends, mode, moves })
    }

    /// Whether there are any that go on.
    #[must_use]
    pub fn are_there(&self) -> bool {
        self.mode == TcpMode::Established && !self.ends.is_empty()
    }

    /// What stands in the way of going on with them: object and reason.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn obstacles(&self) -> Result<Vec<(String, String)>, FileError> {
        let mut found = Vec::new();
        for end in &self.ends {
            let (local, remote) = end.body.ends();
            let reason = match (self.mode, &end.route) {
                (TcpMode::Close, _) => continue,
                (TcpMode::Refuse, _) => "it is carried by --tcp established, and given up by --tcp close",
                (TcpMode::Established, Route::OnTheWay(_)) if self.moves => {
                    "its address is known at the host that it comes from alone (--tcp close gives it up)"
                }
                (TcpMode::Established, Route::Here) if self.moves && is_own(remote.ip()) => {
                    "its other end is at the host that it comes from (--tcp close gives it up)"
                }
                (TcpMode::Established, Route::OnTheWay(_) | Route::Within) => continue,
                (TcpMode::Established, Route::None) => {
                    "the tree's own network has no way to it (--tcp close gives it up)"
                }
                (TcpMode::Established, Route::Here) if !is_own(local.ip()) => {
                    "this host does not have its address (--tcp close gives it up)"
                }
                (TcpMode::Established, Route::Here) if is_somebodys(local, remote).map_err(failed("look for"))? => {
                    "a process of this host has it; is the tree still running? (--tcp close gives it up)"
                }
                (TcpMode::Established, Route::Here) => continue,
            };
            found.push((format!("TCP connection from {local} to {remote}"), reason.to_owned()));
        }
        Ok(found)
    }

    /// Holds back their packets where they come by floe's network namespace, before there is a way to the tree; `None` where
    /// none do. What is left there of the tree's own ends, which nobody has any more, is ended.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn hold_here(&self) -> Result<Option<Held>, FileError> {
        if self.mode != TcpMode::Established {
            return Ok(None);
        }
        let mut here = Vec::new();
        let mut on_the_way: Vec<(Place, Vec<Ends>)> = Vec::new();
        for end in &self.ends {
            match &end.route {
                Route::Here => here.push(end.body.ends()),
                Route::OnTheWay(way) => match on_the_way.first_mut() {
                    // There is one way alone.
                    Some((_, ends)) => ends.push(end.body.ends()),
                    None => on_the_way.push((Place::OnTheWay(way.clone()), vec![end.body.ends()])),
                },
                Route::Within | Route::None => {}
            }
        }
        let are_here = !here.is_empty();
        on_the_way.push((Place::Here, here.clone()));
        let held = Held::take(on_the_way)?;
        if are_here {
            end_orphans(&here).map_err(failed("end what is left of"))?;
        }
        Ok(held)
    }

    /// Holds back their packets in the tree's own network namespaces, before there is a device in these; `None` where there are
    /// none.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn hold_within(&self, spaces: Spaces<'_>) -> Result<Option<Held>, FileError> {
        if self.mode != TcpMode::Established {
            return Ok(None);
        }
        let within = self.ends.iter().filter(|end| matches!(end.route, Route::Within));
        let mut places: BTreeMap<u32, Vec<Ends>> = BTreeMap::new();
        within.for_each(|end| places.entry(end.network).or_default().push(end.body.ends()));
        let places = places.into_iter().map(|(network, ends)| {
            let space = spaces(network).map_err(|source| system_error("open", source))?;
            Ok((Place::Within(space), ends))
        });
        Held::take(places.collect::<Result<_, FileError>>()?)
    }

    /// Lets packets pass, and connections that were made again go on. Nothing may fail behind this. One whose other end has
    /// given it up meanwhile is reset, which is no failure of the others.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn go_on(self, held: [Option<Held>; 2], made: &[(u32, OwnedFd)], spaces: Spaces<'_>) -> Result<(), FileError> {
        // The lasting tables are those of whole places, also where the connections are given up.
        for on_the_way in [false, true] {
            let is_of = |end: &&OutsideEnd| match end.route {
                Route::Here => !on_the_way,
                Route::OnTheWay(_) => on_the_way,
                Route::Within | Route::None => false,
            };
            let ends: Vec<Ends> = (self.ends.iter().filter(is_of)).map(|end| end.body.ends()).collect();
            if ends.is_empty() {
                continue;
            }
            match Release::of(&name(&ends)).and_then(|release| release.perform()) {
                // Where there is no way to hold anything back nothing was.
                Err(Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP) | Ok(_) => {}
                Err(error) => return Err(failed("release")(error)),
            }
        }
        drop(held);
        let ends: HashMap<u32, &OutsideEnd> = self.ends.iter().map(|end| (end.id, end)).collect();
        let mut raw = BTreeMap::new();
        for (id, socket) in made {
            let Some((end, OtherEnd::Outside(outside))) = ends.get(id).map(|end| (*end, &end.body.other)) else {
                continue;
            };
            let mut send = |packet: &Packet| inject(packet, (end.network, spaces), &mut raw);
            if let Err(error) = outside::go_on(socket.as_fd(), (&end.body, outside), &mut send) {
                let (local, remote) = end.body.ends();
                tracing::warn!(%local, %remote, %error, "a TCP connection does not go on");
            }
        }
        Ok(())
    }
}

/// Sends a packet within a network namespace of the tree, by raw sockets that are kept, by namespace and family.
fn inject(
    packet: &Packet,
    (network, spaces): (u32, Spaces<'_>),
    raw: &mut BTreeMap<(u32, i32), OwnedFd>,
) -> Result<(), Errno> {
    let family = packet.family();
    if let std::collections::btree_map::Entry::Vacant(free) = raw.entry((network, family)) {
        let make = || Ok(floe_sys::socket::new(family, libc::SOCK_RAW, libc::IPPROTO_RAW)?);
        let made = spaces(network).and_then(|space| space.run(make).map_err(io::Error::other));
        free.insert(made.map_err(|error| {
            tracing::debug!(%error, "no raw socket");
            Errno::EPERM
        })?);
    }
    packet.send(raw[&(network, family)].as_fd())
}

fn within<T: Send>(
    space: &NetworkSpace,
    action: &'static str,
    act: impl FnOnce() -> Result<T, io::Error> + Send,
) -> Result<T, FileError> {
    space
        .run(act)
        .map_err(|error| system_error(action, io::Error::other(error)))
}

fn system_error(action: &'static str, source: io::Error) -> FileError {
    FileError::System {
        action,
        object: "the packets of TCP connections (nf_tables)".to_owned(),
        source,
    }
}

/// Whether the calling thread's network namespace has an address. To be bound to it shows nothing where that is allowed for all
/// (net.ipv4.ip_nonlocal_bind): what is sent there comes from there.
pub(super) fn is_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let any = match address {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let source = || -> io::Result<IpAddr> {
        let socket = std::net::UdpSocket::bind((any, 0))?;
        // Nothing is sent by that.
        socket.connect((address, 9))?;
        Ok(socket.local_addr()?.ip())
    };
    address.is_loopback() || source().is_ok_and(|source| source == address)
}
