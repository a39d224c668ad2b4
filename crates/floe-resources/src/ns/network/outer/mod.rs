//! Ends of pairs of devices in floe's own network namespace, the host's: what they were is told, and who restores says what they
//! become. They go with the tree's network namespaces, whatever becomes of floe.
//!
//! Nothing comes to a tree by them before it stands: they are joined to the host's network when all else is done.

mod given;

pub use given::{EndError, GivenEnd, GivenEnds};

use super::{Made, NetworkError, title};
use crate::ns::inside::run_in;
use floe_image::record::{NetworkDeviceRecord, NetworkRecord, OuterEndRecord};
use floe_sys::{
    announce,
    namespace::owner,
    procfs::Status,
    route::{self, Device, ipv4},
};
use nix::errno::Errno;
use serde_bytes::ByteBuf;
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// How long a network namespace that has ended may take to have its devices go.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);
const CAP_NET_ADMIN: u32 = 12;
const UP: u32 = libc::IFF_UP as u32;
const SILENT: u32 = (libc::IFF_LOOPBACK | libc::IFF_NOARP | libc::IFF_POINTOPOINT) as u32;

/// floe's own network namespace.
///
/// # Errors
/// Those of open(2).
pub(super) fn own_namespace() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// What the device with a number of the calling thread's network namespace is, if it is an end of a pair.
///
/// # Errors
/// Those of netlink.
pub(super) fn look_at(number: u32) -> Result<Option<OuterEndRecord>, Errno> {
    let all = route::devices()?;
    let of = |number: u32| all.iter().map(|(device, _)| device).find(|one| one.index == number);
    let end = of(number).filter(|end| end.kind == "veth");
    Ok(end.map(|end| OuterEndRecord {
        name: end.name.clone(),
        bridge: (end.master.and_then(of))
            .filter(|master| master.kind == "bridge")
            .map(|master| ByteBuf::from(master.name.clone())),
    }))
}

/// The devices of networks whose other ends were the host's.
fn devices(records: &[NetworkRecord]) -> impl Iterator<Item = (&NetworkRecord, &NetworkDeviceRecord)> {
    let all = records
        .iter()
        .flat_map(|record| record.devices.iter().map(move |device| (record, device)));
    all.filter(|(_, device)| device.outer.is_some())
}

/// Whether there are any.
pub(super) fn are_there(records: &[NetworkRecord]) -> bool {
    devices(records).next().is_some()
}

/// What stands in the way of them on this host: objects and reasons.
///
/// # Errors
/// Those of netlink and /proc.
pub fn obstacles(records: &[NetworkRecord], given: &GivenEnds) -> io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut any = false;
    for (record, device) in devices(records) {
        let object = title::device(&device.name, &device.kind);
        let object = match record.namespace {
            0 => object,
            number => format!("{object}, in network namespace {number} of the image"),
        };
        let Some(end) = given.of(record, device) else {
            found.push((object, lacking(record, device)));
            continue;
        };
        any = true;
        let reasons = in_the_way(end)?.into_iter();
        found.extend(reasons.map(|reason| (object.clone(), reason)));
    }
    for end in given.meant_for(records) {
        let reason = match end.count(records) {
            0 => "the image has no such device whose other end was the host's",
            1 => continue,
            _ => "several network namespaces of the image have such a device: say which by N:DEVICE (floe inspect)",
        };
        found.push((end.to_string(), reason.to_owned()));
    }
    if any && !may_make()? {
        let reason = "only who may administer the host's network may make ends of devices there (CAP_NET_ADMIN)";
        found.push(("--net".to_owned(), reason.to_owned()));
    }
    Ok(found)
}

fn lacking(record: &NetworkRecord, device: &NetworkDeviceRecord) -> String {
    let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    let was = device.outer.as_ref().map(|outer| {
        let bridge = outer.bridge.as_ref().map(|bridge| text(bridge));
        (text(&outer.name), bridge)
    });
    let (name, bridge) = was.unwrap_or_default();
    let key = match record.namespace {
        0 => text(&device.name),
        number => format!("{number}:{}", text(&device.name)),
    };
    match bridge {
        Some(bridge) => format!(
            "its other end was {name} of the host, a part of the bridge {bridge}: give it one here (--net {key}={name}@{bridge})"
        ),
        None => {
            format!(
                "its other end was {name} of the host: give it one here (--net {key}={name}, with ,ADDRESS/BITS or @BRIDGE)"
            )
        }
    }
}

/// Whether floe has the privileges for devices in its own network namespace.
fn may_make() -> io::Result<bool> {
    let [_, _, effective, ..] = Status::read("/proc/thread-self")
        .map_err(io::Error::other)?
        .capabilities;
    match owner(own_namespace()?.as_fd()) {
        Ok(_) => Ok(effective & 1 << CAP_NET_ADMIN != 0),
        // It is that of a user namespace further up.
        Err(Errno::EPERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn in_the_way(end: &GivenEnd) -> Result<Vec<String>, Errno> {
    let mut reasons = Vec::new();
    if is_taken(&end.name)? {
        reasons.push(format!("this host has a device {} already", end.name));
    }
    let Some(bridge) = &end.bridge else { return Ok(reasons) };
    let all = route::devices()?;
    let found = all.iter().find(|(device, _)| device.name == bridge.as_bytes());
    match found {
        None => reasons.push(format!("this host has no bridge {bridge}")),
        Some((device, _)) if device.kind != "bridge" => reasons.push(format!("{bridge} of this host is no bridge")),
        Some(_) => {}
    }
    Ok(reasons)
}

/// Whether there is a device of this name. One that leads to another network namespace may be about to go with that.
fn is_taken(name: &str) -> Result<bool, Errno> {
    let end = Instant::now() + PATIENCE;
    loop {
        let has = |device: &Device| {
            let mut others = device.other_names.iter();
            device.name == name.as_bytes() || others.any(|other| other == name.as_bytes())
        };
        let all = route::devices()?;
        match all.iter().find(|(device, _)| has(device)) {
            None => return Ok(false),
            Some((_, beyond)) if beyond.namespace.is_some() && Instant::now() < end => thread::sleep(PAUSE),
            Some(_) => return Ok(true),
        }
    }
}

/// A device of the tree: the number of its network namespace, and its own.
pub(super) type Inner = (u32, u32);

/// Where the other ends are made, and what they are called there.
pub struct OuterEnds<'a> {
    pub(super) place: BorrowedFd<'a>,
    names: BTreeMap<Inner, String>,
}

impl<'a> OuterEnds<'a> {
    /// As the user gives them.
    #[must_use]
    pub fn given(place: BorrowedFd<'a>, records: &[NetworkRecord], given: &GivenEnds) -> Self {
        let names = devices(records).filter_map(|(record, device)| {
            let end = given.of(record, device)?;
            Some(((record.namespace, device.number), end.name.clone()))
        });
        Self {
            place,
            names: names.collect(),
        }
    }

    /// For a rehearsal.
    pub(super) fn rehearsed(place: BorrowedFd<'a>, records: &[NetworkRecord]) -> Self {
        let names = devices(records).zip(0..);
        let names = names.map(|((record, device), number)| ((record.namespace, device.number), format!("end{number}")));
        Self {
            place,
            names: names.collect(),
        }
    }

    /// The other end of a device, as it is to be made.
    pub(super) fn of(&self, inner: Inner, device: &Device) -> Option<Device> {
        let name = self.names.get(&inner)?;
        Some(device.other_end(name.as_bytes()))
    }

    /// Puts those up that made a line, and tells the numbers of all. The devices `now` are those of a network namespace of the
    /// tree.
    pub(super) fn raise(
        &self,
        record: &NetworkRecord,
        now: &BTreeMap<u32, Device>,
        numbers: &mut BTreeMap<Inner, u32>,
    ) -> Result<(), NetworkError> {
        for (_, device) in devices(std::slice::from_ref(record)) {
            let number = now.get(&device.number).and_then(|device| device.link);
            let failed =
                |source| NetworkError::new("put up the other end of", title::device(&device.name, "veth"), source);
            let number = number.ok_or(Errno::ENODEV).map_err(failed)?;
            numbers.insert((record.namespace, device.number), number);
            // One that was up without a line had an end that was down.
            if device.carrier || device.flags & UP == 0 {
                let put_up = run_in(self.place, || Ok(put_up(number)?));
                put_up.map_err(|source| NetworkError {
                    source,
                    ..failed(Errno::EIO)
                })?;
            }
        }
        Ok(())
    }
}

fn put_up(number: u32) -> Result<(), Errno> {
    let up = Device {
        index: number,
        flags: UP,
        ..Device::default()
    };
    up.switch()
}

/// Takes down the host's ends of the devices of networks that end: until they are gone, which takes as long as their tasks' memory is
/// large, nobody is to be answered by them. Some may be gone already.
pub fn cut_off(records: &[NetworkRecord]) {
    for (_, device) in devices(records) {
        let Some(outer) = &device.outer else { continue };
        let cut = route::link(&outer.name).and_then(|end| {
            let down = Device {
                index: end.index,
                ..Device::default()
            };
            down.switch()
        });
        if let Err(error) = cut {
            tracing::debug!(%error, "the other end of a device goes by itself");
        }
    }
}

/// Ends that were made, by number.
#[derive(Debug, Default)]
pub struct MadeEnds(pub(super) BTreeMap<Inner, u32>);

impl MadeEnds {
    /// Has the host's network, the caller's, reach them: parts of bridges, with addresses, and up.
    ///
    /// # Errors
    /// What could not be done.
    pub fn join(&self, made: &[Made<'_>], given: &GivenEnds) -> Result<(), NetworkError> {
        let records = made.iter().map(|(record, _)| *record);
        let ends = records.flat_map(|record| devices(std::slice::from_ref(record)));
        for (record, device) in ends {
            let number = self.0.get(&(record.namespace, device.number));
            if let (Some(number), Some(end)) = (number, given.of(record, device)) {
                let failed = |source| NetworkError::new("join to the host's network", &end.name[..], source);
                join(*number, end).map_err(failed)?;
            }
        }
        if !self.0.is_empty() {
            made.iter().for_each(|(record, namespace)| announce(record, *namespace));
        }
        Ok(())
    }
}

/// Tells neighbours where the addresses of a network are now. Who does not hear it finds out by itself, in time.
fn announce(record: &NetworkRecord, namespace: BorrowedFd<'_>) {
    let tell = || {
        for (device, _) in route::devices()? {
            let hardware = device.hardware().and_then(|bytes| bytes.try_into().ok());
            let Some(hardware) = hardware.filter(|_| device.flags & UP != 0 && device.flags & SILENT == 0) else {
                continue;
            };
            let here = super::own_addresses(record).filter(|(number, _)| *number == device.index);
            for (_, address) in here {
                if let Err(error) = announce::announce(device.index, hardware, address, routes(&device.name)) {
                    tracing::info!(%address, %error, "neighbours are not told where it is now");
                }
            }
        }
        Ok(())
    };
    if let Err(error) = run_in(namespace, tell) {
        tracing::info!(%error, "neighbours are not told where addresses are now");
    }
}

/// Whether a device of the calling thread's network namespace forwards packets of IPv6. Without IPv6 it does not.
fn routes(device: &[u8]) -> bool {
    let setting = Path::new("/proc/sys/net/ipv6/conf").join(OsStr::from_bytes(device));
    std::fs::read(setting.join("forwarding")).is_ok_and(|value| value.trim_ascii() != b"0")
}

fn join(number: u32, end: &GivenEnd) -> Result<(), Errno> {
    if let Some(bridge) = &end.bridge {
        let part = Device {
            index: number,
            master: Some(route::link(bridge.as_bytes())?.index),
            ..Device::default()
        };
        part.join()?;
    }
    put_up(number)?;
    end.addresses
        .iter()
        .try_for_each(|network| ipv4::give_address(number, *network))
}
