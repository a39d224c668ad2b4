//! Makes the networks of an image in network namespaces that nobody is in, to see what is in the way.

use super::{NetworkError, OuterEnds, compare, make, outer, shape};
use crate::ns::{NsError, contents, inside, make_namespace};
use floe_image::record::{NamespaceContents, NamespaceRecord, NetworkDeviceRecord, NetworkRecord};
use floe_sys::route::{Link, VethEnd, link, make_veth, set_link};
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

/// Makes them, and tells what is in the way: objects and reasons. Who owns each decides what can be set in it.
///
/// # Errors
/// [`NsError`] where there can't be such namespaces.
pub fn rehearse(records: &[NetworkRecord], namespaces: &[NamespaceRecord]) -> Result<Vec<(String, String)>, NsError> {
    let host = || make_namespace(&NamespaceContents::Network, None, &[]);
    let with_hosts = |made| Ok((made, outer::are_there(records).then(host).transpose()?));
    let (made, host) = match make_all(records, namespaces).and_then(with_hosts) {
        Ok(made) => made,
        Err(error) => {
            let reason = format!("this host can't make them: {error}");
            return Ok(vec![("network namespaces".to_owned(), reason)]);
        }
    };
    let of = |record: &NetworkRecord| made[&record.namespace].as_fd();
    let mut beyond = Vec::new();
    for record in records {
        if let Some(joining) = record.devices.iter().find(|device| joins(device)) {
            let other = inside::run_in(of(record), || stand_in(joining));
            beyond.push(other.map_err(NsError::New)?);
        }
    }
    // What is usual can be set wherever there are networks.
    let unusual = |record: &NetworkRecord| NetworkRecord {
        settings: (record.settings.iter().filter(|setting| !setting.usual).cloned()).collect(),
        ..record.clone()
    };
    let unusual: Vec<NetworkRecord> = records.iter().map(unusual).collect();
    let rehearsed: Vec<_> = unusual.iter().map(|record| (record, of(record))).collect();
    let outer = host.as_ref().map(|host| OuterEnds::rehearsed(host.as_fd(), records));
    if let Err(NetworkError { object, action, source }) = make(&rehearsed, outer.as_ref()) {
        return Ok(vec![(object, format!("this host can't {action} it: {source}"))]);
    }
    let wanted: Vec<_> = records.iter().map(|record| (record, of(record))).collect();
    if let Err(NetworkError { object, source, .. }) = shape(&wanted) {
        return Ok(vec![(object, format!("it can't be made on this host: {source}"))]);
    }
    let differences = compare::differences(&wanted).map_err(NsError::New)?.into_iter();
    Ok(differences.map(|text| ("network".to_owned(), text)).collect())
}

/// The network namespaces, by number, each with an owner like its own.
fn make_all(records: &[NetworkRecord], namespaces: &[NamespaceRecord]) -> io::Result<HashMap<u32, OwnedFd>> {
    let mut made = contents::rehearse(namespaces, |_, contents| *contents == NamespaceContents::Network)?;
    if records.iter().any(|record| record.namespace == 0) {
        made.insert(0, make_namespace(&NamespaceContents::Network, None, &[])?);
    }
    Ok(made)
}

/// Whether a device is that by which the host joins the network to its own.
fn joins(device: &NetworkDeviceRecord) -> bool {
    device.inherited && device.kind == "veth"
}

/// Makes such a device in the calling thread's network namespace, whose other end is in one that goes with what is returned.
fn stand_in(device: &NetworkDeviceRecord) -> io::Result<File> {
    const OTHER: &str = "beyond";
    let here = File::open("/proc/thread-self/ns/net")?;
    let name = String::from_utf8_lossy(&device.name).into_owned();
    let make = || {
        let end = |name, index, namespace| VethEnd {
            name,
            address: None,
            index,
            namespace,
        };
        make_veth(&end(OTHER, 0, None), &end(&name, device.number, Some(here.as_fd())))?;
        let other = link(OTHER.as_bytes())?;
        let up = libc::IFF_UP as u32;
        set_link(
            other.index,
            &Link {
                flags: up,
                ..other.clone()
            },
            up,
        )?;
        File::open("/proc/thread-self/ns/net")
    };
    inside::in_new_network(make).map_err(io::Error::other)
}
