//! Network devices that sockets know by their numbers, which mean the same only where names are the same.

use super::{
    options::{self, SocketOption},
    system,
};
use crate::{
    file::{FileError, FoundFile, OpenContext},
    ns,
};
use floe_sys::network::{device_name, device_number};
use floe_tracee::Puppet;
use nix::sched::CloneFlags;
use std::io;

/// Devices that a socket's options name, and the one that it is bound to, in its own network namespace.
pub(super) fn devices_of(
    file: &FoundFile,
    options: &[SocketOption],
    own: Option<u32>,
) -> Result<Vec<(u32, String)>, FileError> {
    let mut numbers = options::devices(options);
    numbers.extend(own);
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    let named = |number| (number, device_name(number).unwrap_or_default());
    let find = || Ok(numbers.into_iter().map(named).collect());
    ns::inside::run(file.viewer, CloneFlags::CLONE_NEWNET, find).map_err(|error| FileError::System {
        action: "look for the network devices of",
        object: file.title(),
        source: io::Error::other(error),
    })
}

/// Finds them again by their numbers.
pub(super) fn check_devices(id: u32, devices: &[(u32, String)], context: &OpenContext<'_>) -> Result<(), FileError> {
    let inside = context.puppets.values().next().map(Puppet::tid);
    let Some(inside) = inside.filter(|_| !devices.is_empty()) else {
        return Ok(());
    };
    let find = || {
        let is_another = |(number, name): &&(u32, String)| device_number(name) != Some(*number);
        match devices.iter().find(is_another) {
            None => Ok(()),
            Some((number, name)) => Err(io::Error::other(format!("network device {number} is not {name} here"))),
        }
    };
    let found = ns::inside::run(inside, CloneFlags::CLONE_NEWNET, find);
    found.map_err(|error| system("find the network devices of", id, io::Error::other(error)))
}
