//! Network devices that sockets know by their numbers, which mean the same only where names are the same.

use super::{
    inet,
    options::{self, SocketOption},
    raw, system, tcp,
};
use crate::file::{FileError, FoundFile, OpenContext, tun};
use floe_image::Image;
use floe_sys::network::{device_name, device_number};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

/// Devices that a socket's options name, and others that it knows, in its own network namespace.
pub(super) fn devices_of(
    file: &FoundFile,
    options: &[SocketOption],
    own: BTreeSet<u32>,
) -> Result<Vec<(u32, String)>, FileError> {
    let mut numbers = options::devices(options);
    numbers.extend(own.into_iter().filter(|number| *number != 0));
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    let named = |number| (number, device_name(number).unwrap_or_default());
    let find = || Ok(numbers.into_iter().map(named).collect());
    file.network.run(find).map_err(|error| FileError::System {
        action: "look for the network devices of",
        object: file.title(),
        source: io::Error::other(error),
    })
}

/// Numbers that devices had and have now.
#[derive(Debug, Default)]
pub(super) struct Devices(BTreeMap<u32, u32>);

impl Devices {
    /// The number that the device now has which had this one; 0 is none.
    pub(super) fn now(&self, before: u32) -> u32 {
        self.0.get(&before).copied().unwrap_or(before)
    }
}

/// Finds them again by their names.
pub(super) fn find_devices(
    id: u32,
    devices: &[(u32, String)],
    context: &OpenContext<'_>,
) -> Result<Devices, FileError> {
    if devices.is_empty() {
        return Ok(Devices::default());
    }
    let now = |(before, name): &(u32, String)| match device_number(name) {
        Some(now) => Ok((*before, now)),
        None => Err(io::Error::other(format!("there is no network device {name} here"))),
    };
    let find = || devices.iter().map(now).collect::<Result<_, _>>();
    let found = context.inside(context.network(id), find).map(Devices);
    found.map_err(|error| system("find the network devices of", id, error))
}

/// Whether an image makes a device of this name in a network namespace.
fn has_device(image: &Image, namespace: u32, name: &str) -> bool {
    let networks = image.networks().iter().filter(|network| network.namespace == namespace);
    let mut all = networks.flat_map(|network| &network.devices);
    all.any(|device| device.name == name.as_bytes())
}

/// Names of the network devices that open files need and that are not there: in floe's own network namespace, or in a new one,
/// which has loopback alone. Those that the image makes are left to that.
///
/// # Errors
/// [`FileError`] for a record that can't be read.
pub fn lacking_devices(image: &Image, own_network: bool) -> Result<Vec<(String, String)>, FileError> {
    let made = tun::names(image)?;
    let mut found = Vec::new();
    for record in image.open_files() {
        let mut names = inet::devices_in(record)?;
        names.extend(raw::devices_in(record)?);
        names.extend(tcp::devices_in(record)?);
        let is_there = |name: &str| {
            if own_network || record.network != 0 {
                name == "lo" || has_device(image, record.network, name)
            } else {
                device_number(name).is_some()
            }
        };
        for name in names.into_iter().filter(|name| !made.contains(name) && !is_there(name)) {
            let reason = format!("there is no network device {name} here");
            found.push((format!("open file {}", record.id), reason));
        }
    }
    Ok(found)
}
