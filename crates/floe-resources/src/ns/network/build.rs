//! Makes what records say in network namespaces that are as new.

use super::{Made, MadeEnds, OuterEnds, device_of, settings, tables, title};
use crate::ns::inside::run_in;
use floe_image::record::{NetworkDeviceRecord, NetworkRecord};
use floe_sys::{
    ethtool,
    route::{Beside, Device, Table, devices},
};
use nix::errno::Errno;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::BorrowedFd,
};

/// IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const NO_OWN_ADDRESS: u8 = 1;

/// Something of a network that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{action} {object}")]
pub struct NetworkError {
    /// Which.
    pub object: String,
    /// What was attempted.
    pub action: String,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl NetworkError {
    pub(super) fn new(action: &str, object: impl Into<String>, source: Errno) -> Self {
        Self {
            object: object.into(),
            action: action.to_owned(),
            source: source.into(),
        }
    }

    fn of(action: &str, device: &Device) -> impl FnOnce(Errno) -> Self {
        let (action, object) = (action.to_owned(), title::device(&device.name, &device.kind));
        move |source| Self::new(&action, object, source)
    }
}

/// One of the network namespaces that are filled.
struct Filling<'a> {
    record: &'a NetworkRecord,
    file: BorrowedFd<'a>,
    wanted: Vec<Device>,
    inherited: BTreeSet<u32>,
    later: BTreeSet<Vec<u8>>,
}

/// Makes networks in network namespaces that are new, with the ends of pairs that are the host's where there are such.
///
/// # Errors
/// What could not be made.
pub fn make(all: &[Made<'_>], outer: Option<&OuterEnds<'_>>) -> Result<MadeEnds, NetworkError> {
    let all: Vec<Filling<'_>> = all.iter().map(|(record, file)| Filling::new(record, *file)).collect();
    for one in &all {
        one.inside(|| one.prepare())?;
    }
    make_devices(&all, outer)?;
    let mut ends = MadeEnds::default();
    if let Some(outer) = outer {
        for one in all.iter().filter(|one| one.has_outer_ends()) {
            outer.raise(one.record, &one.inside(look)?, &mut ends.0)?;
        }
    }
    let changed = all.iter().map(|one| one.inside(|| one.configure()));
    let changed: Vec<bool> = changed.collect::<Result<_, _>>()?;
    switch(&all)?;
    settle(&all)?;
    for (one, changed) in all.iter().zip(changed) {
        one.inside(|| one.fill(changed))?;
    }
    Ok(ends)
}

/// Sets what belongs to devices that others have made since.
///
/// # Errors
/// What could not be set.
pub fn finish(all: &[Made<'_>]) -> Result<(), NetworkError> {
    let all = all.iter().map(|(record, file)| Filling::new(record, *file));
    for one in all.filter(|one| !one.later.is_empty()) {
        one.inside(|| settings::write(&one.record.settings, &BTreeSet::new()))?;
    }
    Ok(())
}

impl<'a> Filling<'a> {
    fn new(record: &'a NetworkRecord, file: BorrowedFd<'a>) -> Self {
        let inherited = record.devices.iter().filter(|device| device.inherited);
        Self {
            record,
            file,
            wanted: record.devices.iter().map(device_of).collect(),
            inherited: inherited.map(|device| device.number).collect(),
            later: later(record),
        }
    }

    /// Does something in it.
    fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T, NetworkError> + Send) -> Result<T, NetworkError> {
        run_in(self.file, || Ok(work())).map_err(|source| NetworkError {
            object: format!("network namespace {} of the image", self.record.namespace),
            action: "enter".to_owned(),
            source,
        })?
    }

    fn has_outer_ends(&self) -> bool {
        self.record.devices.iter().any(|device| device.outer.is_some())
    }

    /// What new devices have is what those for new devices are then.
    fn prepare(&self) -> Result<(), NetworkError> {
        check_inherited(&self.wanted, &self.inherited)?;
        let own: BTreeSet<Vec<u8>> = (self.record.devices.iter().filter(|device| !device.inherited))
            .map(|device| device.name.clone())
            .collect();
        if !own.is_empty() {
            settings::write(&self.record.settings, &self.later.union(&own).cloned().collect())?;
        }
        Ok(())
    }

    /// Sets what devices are while they are down. Whether settings were another way: then they need another look when all
    /// devices are there.
    fn configure(&self) -> Result<bool, NetworkError> {
        let changed = settings::write(&self.record.settings, &self.later)?;
        let mut joining: Vec<&Device> = self.wanted.iter().collect();
        joining.sort_by_key(|device| (device.master, device.port_number()));
        for device in joining {
            device.join().map_err(NetworkError::of("join", device))?;
        }
        let now = look()?;
        for device in &self.wanted {
            let now = now.get(&device.index).ok_or(Errno::ENODEV);
            let now = now.map_err(NetworkError::of("find", device))?;
            device.set(now).map_err(NetworkError::of("configure", device))?;
            if device.address_mode.is_some() && now.address_mode.is_some() {
                let quiet = device.set_address_mode(NO_OWN_ADDRESS);
                quiet.map_err(NetworkError::of("set the addresses of", device))?;
            }
        }
        Ok(changed)
    }

    /// Fills the tables, when devices are up.
    fn fill(&self, changed: bool) -> Result<(), NetworkError> {
        let numbers = self.wanted.iter().map(|device| device.index).collect();
        for table in Table::ALL {
            tables::fill(table, tables::of(self.record, table), &numbers)?;
        }
        for device in &self.wanted {
            if let Some(mode) = device.address_mode {
                let set = device.set_address_mode(mode);
                set.map_err(NetworkError::of("set the addresses of", device))?;
            }
        }
        if changed || self.wanted.len() > self.inherited.len() {
            settings::write(&self.record.settings, &self.later)?;
        }
        Ok(())
    }

    /// Has the lines of its devices be as they were, where the kernel knows of them.
    fn set_carriers(&self, before: &BTreeMap<u32, Device>) -> Result<(), NetworkError> {
        for device in self.wanted.iter().filter(|device| device.is_up()) {
            let is_so = |now: &Device| now.carrier == device.carrier;
            if before.get(&device.index).is_none_or(is_so) {
                continue;
            }
            match device.set_carrier() {
                // It has none of its own; what it has is compared.
                Ok(()) | Err(Errno::EOPNOTSUPP) => {}
                Err(error) => return Err(NetworkError::of("set the line of", device)(error)),
            }
        }
        Ok(())
    }
}

/// Devices that have settings and are made later.
fn later(record: &NetworkRecord) -> BTreeSet<Vec<u8>> {
    let known: BTreeSet<&[u8]> = record.devices.iter().map(|device| device.name.as_slice()).collect();
    let all = record
        .settings
        .iter()
        .filter_map(|setting| settings::device(&setting.path));
    all.filter(|device| !known.contains(device))
        .map(<[u8]>::to_vec)
        .collect()
}

fn look() -> Result<BTreeMap<u32, Device>, NetworkError> {
    let all = devices().map_err(|error| NetworkError::new("look at", "network devices", error))?;
    Ok(all.into_iter().map(|(device, _)| (device.index, device)).collect())
}

/// What every network namespace of this host has must be what those of the source host had.
fn check_inherited(wanted: &[Device], inherited: &BTreeSet<u32>) -> Result<(), NetworkError> {
    let here = look()?;
    for device in wanted.iter().filter(|device| inherited.contains(&device.index)) {
        let same = here.get(&device.index).is_some_and(|here| here.kind == device.kind);
        if !same {
            return Err(NetworkError::of("find", device)(Errno::ENODEV));
        }
    }
    let surplus = here.values().find(|device| !inherited.contains(&device.index));
    surplus.map_or(Ok(()), |device| {
        Err(NetworkError::of("do without", device)(Errno::EEXIST))
    })
}

/// A device by its place among those of its namespace, and that by its place among all.
type Place = (usize, usize);

/// Makes those that others are on first.
fn make_devices(all: &[Filling<'_>], outer: Option<&OuterEnds<'_>>) -> Result<(), NetworkError> {
    let inherited = all.iter().flat_map(|one| {
        let own = one.inherited.iter();
        own.map(|number| (one.record.namespace, *number))
    });
    let mut made: BTreeSet<(u32, u32)> = inherited.collect();
    let places = all.iter().enumerate();
    let mut waiting: Vec<Place> = places
        .flat_map(|(place, one)| (0..one.wanted.len()).map(move |device| (place, device)))
        .filter(|(place, device)| !made.contains(&(all[*place].record.namespace, all[*place].wanted[*device].index)))
        .collect();
    let number = |(place, device): Place| (all[place].record.namespace, all[place].wanted[device].index);
    while !waiting.is_empty() {
        let before = waiting.len();
        for this in waiting.clone() {
            let link = is_on(all, this);
            if made.contains(&number(this)) {
                continue;
            }
            let (place, device) = (this.0, &all[this.0].wanted[this.1]);
            let link = link.map_err(NetworkError::of("find what it is on", device))?;
            let is_pair = device.kind == "veth";
            if !is_pair && link.is_some_and(|link| !made.contains(&number(link))) {
                continue;
            }
            let other = link.filter(|_| is_pair);
            let elsewhere = link.filter(|link| link.0 != place);
            // It counts the number of the device that it is on where that is.
            let (from, into) = match elsewhere.filter(|_| !is_pair) {
                Some((from, _)) => (from, Some(all[place].file)),
                None => (place, None),
            };
            let outer_end = outer.and_then(|outer| Some((outer.of(number(this), device)?, outer.place)));
            let others = elsewhere.filter(|_| is_pair).map(|(place, _)| all[place].file);
            let beside = Beside {
                other: (other.map(|(place, device)| &all[place].wanted[device]))
                    .or(outer_end.as_ref().map(|(end, _)| end)),
                others: others.or(outer_end.as_ref().map(|(_, place)| *place)),
                own: into,
            };
            all[from].inside(|| device.make(&beside).map_err(NetworkError::of("make", device)))?;
            made.insert(number(this));
            made.extend(other.map(number));
        }
        waiting.retain(|this| !made.contains(&number(*this)));
        if waiting.len() == before {
            let (place, device) = waiting[0];
            return Err(NetworkError::of("make", &all[place].wanted[device])(Errno::ELOOP));
        }
    }
    Ok(())
}

/// The device that one is on, or its other end.
fn is_on(all: &[Filling<'_>], (place, device): Place) -> Result<Option<Place>, Errno> {
    let record: &NetworkDeviceRecord = &all[place].record.devices[device];
    let Some(link) = record.link else { return Ok(None) };
    let namespace = record.link_namespace.unwrap_or(all[place].record.namespace);
    let place = all.iter().position(|one| one.record.namespace == namespace);
    let place = place.ok_or(Errno::ENODEV)?;
    let device = all[place].wanted.iter().position(|other| other.index == link);
    Ok(Some((place, device.ok_or(Errno::ENODEV)?)))
}

/// Puts devices up and down; some can be up only on one that is.
fn switch(all: &[Filling<'_>]) -> Result<(), NetworkError> {
    for one in all {
        let mut down = one.wanted.iter().filter(|device| !device.is_up());
        one.inside(|| down.try_for_each(|device| device.switch().map_err(NetworkError::of("put down", device))))?;
    }
    let ups = all.iter().map(|one| one.wanted.iter().filter(|device| device.is_up()));
    let mut waiting: Vec<Vec<&Device>> = ups.map(Iterator::collect).collect();
    loop {
        let before: usize = waiting.iter().map(Vec::len).sum();
        let mut first = None;
        for (one, waiting) in all.iter().zip(&mut waiting) {
            let failed = one.inside(|| {
                let failed = waiting
                    .iter()
                    .filter_map(|device| Some((*device, device.switch().err()?)));
                Ok(failed.collect::<Vec<_>>())
            })?;
            first = first.or(failed.first().copied());
            *waiting = failed.into_iter().map(|(device, _)| device).collect();
        }
        match first {
            None => return Ok(()),
            Some((device, error)) if waiting.iter().map(Vec::len).sum::<usize>() == before => {
                return Err(NetworkError::of("put up", device)(error));
            }
            Some(_) => {}
        }
    }
}

/// Waits until the kernel knows of all lines, and of what follows from them.
fn settle(all: &[Filling<'_>]) -> Result<(), NetworkError> {
    let looks = || all.iter().map(|one| one.inside(look)).collect::<Result<Vec<_>, _>>();
    let mut before = looks()?;
    // Each may follow from the one before it.
    for _ in all.iter().flat_map(|one| &one.wanted) {
        for one in all {
            let mut devices = one.wanted.iter();
            one.inside(|| {
                devices.try_for_each(|device| {
                    let known = ethtool::sync_line(&device.name);
                    known.map(drop).map_err(NetworkError::of("look at", device))
                })
            })?;
        }
        let now = looks()?;
        if now == before {
            break;
        }
        before = now;
    }
    let mut all = all.iter().zip(before);
    all.try_for_each(|(one, before)| one.inside(|| one.set_carriers(&before)))
}
