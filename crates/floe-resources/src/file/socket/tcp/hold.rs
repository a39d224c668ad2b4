//! Holding back the packets of connections whose other ends are outside of the tree, from the look at them until the
//! restored tree is about to run:
//!
//! ```text
//! checkpoint   a table that floe owns      -> a table that stays for a day -> the tree ends
//! restore      a table that floe owns too  -> both removed, repair mode ended -> the tree runs
//! ```
//! A table that floe owns the kernel removes should floe be killed. The lasting one the keeper removes then, unless the
//! tree is ending. Its name follows from the addresses, so that a restore finds it.

use super::{Body, Ends, NAME, OtherEnd, TcpMode, outside};
use crate::{
    file::{
        FileError,
        socket::{Keeper, keeper::is_ending, system},
    },
    ns,
};
use floe_image::{Image, record::OpenFileRecord};
use floe_sys::{
    Pid,
    netfilter::{self, Hold, Release, Way},
    packet::Packet,
    socket::{end_orphans, is_somebodys},
};
use nix::{errno::Errno, sched::CloneFlags};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
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

/// The name of a table that this process owns.
fn own_name(ends: &[Ends]) -> String {
    format!("{}-{}", name(ends), std::process::id())
}

fn failed(action: &'static str) -> impl FnOnce(Errno) -> FileError {
    FileError::system(action, "the packets of TCP connections (nf_tables)")
}

/// Packets are held back as long as this is there, and longer if it is told so.
pub struct Held {
    ends: Vec<Ends>,
    /// How they come through floe's own network namespace, where they are of another one.
    way: Option<Way>,
    _hold: Hold,
}

/// Packets are held back for long: when this is dropped, or floe is killed, only if the tree is ending by then.
pub struct Ending<'a> {
    keeper: &'a Keeper,
    release: Release,
    root: Pid,
}

impl Held {
    /// Those of connections in floe's own network namespace, or with a way of one that is joined to it; `None` where there are
    /// none.
    pub(super) fn take(ends: Vec<Ends>, way: Option<Way>) -> Result<Option<Self>, FileError> {
        if ends.is_empty() {
            return Ok(None);
        }
        let hold = Hold::take(&own_name(&ends), &ends, way.as_ref()).map_err(failed("hold back"))?;
        Ok(Some(Self { ends, way, _hold: hold }))
    }

    /// Holds them back also when floe has ended.
    pub(in crate::file) fn stay<'a>(&self, keeper: &'a Keeper, root: Pid) -> Result<Ending<'a>, FileError> {
        let name = name(&self.ends);
        let release = Release::of(&name).map_err(failed("prepare to hold back"))?;
        // That of an earlier checkpoint, of which the tree was brought back elsewhere.
        release.perform().map_err(failed("hold back anew"))?;
        let (socket, bytes) = release.parts();
        keeper
            .send_at_end(socket.as_fd(), bytes, root)
            .map_err(failed("have an eye on"))?;
        let ending = Ending { keeper, release, root };
        netfilter::hold_for(&name, (&self.ends, self.way.as_ref()), AWAY).map_err(failed("hold back"))?;
        Ok(ending)
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !is_ending(self.root)
            && let Err(error) = self.release.perform()
        {
            tracing::error!(%error, "packets of TCP connections are held back though the tree runs on");
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
    /// Those with sockets that listen at these addresses, in the network namespace of a process.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn hold_back(places: &[SocketAddr], inside: Pid) -> Result<Self, FileError> {
        let name = format!("floe-new-{}", std::process::id());
        run(inside, "hold back", || Ok(Self(Hold::newcomers(&name, places)?)))
    }
}

/// The connections of an image whose other ends are outside of the tree.
#[derive(Debug)]
pub struct OutsideEnds {
    ends: Vec<(u32, Body)>,
    mode: TcpMode,
    /// How they come through floe's own network namespace, where the tree gets one that is joined to it.
    way: Option<Way>,
}

/// Such ends made again, in repair mode.
pub(in crate::file) type MadeOutside = Vec<(u32, OwnedFd)>;

impl OutsideEnds {
    /// Finds them.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn of(image: &Image, mode: TcpMode, way: Option<Way>) -> Result<Self, FileError> {
        let records = image.open_files().iter().filter(|record| record.kind == NAME);
        let bodies = records.map(|record: &OpenFileRecord| Ok((record.id, super::possible(record)?)));
        let mut ends = bodies.collect::<Result<Vec<_>, FileError>>()?;
        ends.retain(|(_, body)| matches!(body.other, OtherEnd::Outside(_)));
        Ok(Self { ends, mode, way })
    }

    fn all(&self) -> Vec<Ends> {
        self.ends.iter().map(|(_, body)| body.ends()).collect()
    }

    /// What stands in the way of going on with them: object and reason. `own_network` tells that the tree gets a network
    /// namespace of its own.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn obstacles(&self, own_network: bool) -> Result<Vec<(String, String)>, FileError> {
        let mut found = Vec::new();
        for (_, body) in &self.ends {
            let (local, remote) = body.ends();
            let reason = match self.mode {
                TcpMode::Close => continue,
                TcpMode::Refuse => "it is carried by --tcp established, and given up by --tcp close",
                TcpMode::Established if self.way.as_ref().is_some_and(|way| local.ip() == way.inside) => continue,
                TcpMode::Established if own_network => {
                    "the tree's own network has no way to it (--tcp close gives it up)"
                }
                TcpMode::Established if !is_here(local.ip()) => {
                    "this host does not have its address (--tcp close gives it up)"
                }
                TcpMode::Established if is_somebodys(local, remote).map_err(failed("look for"))? => {
                    "a process of this host has it; is the tree still running? (--tcp close gives it up)"
                }
                TcpMode::Established => continue,
            };
            found.push((format!("TCP connection from {local} to {remote}"), reason.to_owned()));
        }
        Ok(found)
    }

    /// Holds back their packets on their way to a network that is joined to floe's own, before that is made; `None` where they
    /// are of no such one.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn hold_on_the_way(&self) -> Result<Option<Held>, FileError> {
        if self.way.is_none() || self.mode != TcpMode::Established {
            return Ok(None);
        }
        Held::take(self.all(), self.way.clone())
    }

    /// Holds back their packets in the network namespace of a process; `None` where there are none. What is left of the
    /// tree's own ends there, which nobody has any more, is ended.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn hold(&self, inside: Pid) -> Result<Option<Held>, FileError> {
        if self.ends.is_empty() || self.mode != TcpMode::Established || self.way.is_some() {
            return Ok(None);
        }
        let ends = self.all();
        run(inside, "hold back", || {
            let held = Held::take(ends, None).map_err(io::Error::other)?;
            end_orphans(&self.all())?;
            Ok(held)
        })
    }

    /// Lets packets pass, and connections that were made again go on. Nothing may fail behind this.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn go_on(self, held: Option<Held>, made: &[(u32, OwnedFd)], inside: Pid) -> Result<(), FileError> {
        if self.ends.is_empty() {
            return Ok(());
        }
        let release = || match Release::of(&name(&self.all())).and_then(|release| release.perform()) {
            // Where there is no way to hold anything back nothing was.
            Err(Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP) => Ok(false),
            released => released,
        };
        match self.way {
            Some(_) => release().map_err(failed("release"))?,
            None => run(inside, "release", || Ok(release()?))?,
        };
        drop(held);
        let bodies: HashMap<u32, &Body> = self.ends.iter().map(|(id, body)| (*id, body)).collect();
        let mut raw = BTreeMap::new();
        for (id, socket) in made {
            let Some((body, OtherEnd::Outside(end))) = bodies.get(id).map(|body| (*body, &body.other)) else {
                continue;
            };
            let mut send = |packet: &Packet| inject(packet, inside, &mut raw);
            outside::go_on(socket.as_fd(), (body, end), &mut send)
                .map_err(|source| system("go on with", *id, source))?;
        }
        Ok(())
    }
}

/// Sends a packet within the network namespace of a process, by raw sockets that are kept, by family.
fn inject(packet: &Packet, inside: Pid, raw: &mut BTreeMap<i32, OwnedFd>) -> Result<(), Errno> {
    let family = packet.family();
    if let std::collections::btree_map::Entry::Vacant(free) = raw.entry(family) {
        let make = || Ok(floe_sys::socket::new(family, libc::SOCK_RAW, libc::IPPROTO_RAW)?);
        free.insert(
            ns::inside::run(inside, CloneFlags::CLONE_NEWNET, make).map_err(|error| {
                tracing::debug!(%error, "no raw socket");
                Errno::EPERM
            })?,
        );
    }
    packet.send(raw[&family].as_fd())
}

fn run<T: Send>(
    inside: Pid,
    action: &'static str,
    act: impl FnOnce() -> Result<T, io::Error> + Send,
) -> Result<T, FileError> {
    ns::inside::run(inside, CloneFlags::CLONE_NEWNET, act).map_err(|error| FileError::System {
        action,
        object: "the packets of TCP connections (nf_tables)".to_owned(),
        source: io::Error::other(error),
    })
}

/// Whether floe's network namespace has an address.
fn is_here(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}
