//! What is in the network namespaces of a tree: made in a rehearsal first, in one that nobody is in, then in the new sandbox,
//! before there is a socket that could need it.

use super::{RestoreError, preflight::Obstacle};
use floe_image::Image;
use floe_resources::ns::network;
use floe_sys::Pid;

/// What is in the way of the networks of an image.
pub fn obstacles(image: &Image) -> Result<Vec<Obstacle>, RestoreError> {
    let mut found = Vec::new();
    for record in image.networks() {
        let rehearsed = network::rehearse(record)?.into_iter();
        found.extend(rehearsed.map(|(object, reason)| Obstacle { object, reason }));
    }
    Ok(found)
}

/// Makes that of the tree's root in the new sandbox.
pub fn make(image: &Image, pid1: Pid) -> Result<(), RestoreError> {
    let own = image.networks().first();
    own.map_or(Ok(()), |record| Ok(network::make(record, pid1)??))
}

/// Sets what belongs to devices that came with files.
pub fn finish(image: &Image, pid1: Pid) -> Result<(), RestoreError> {
    let own = image.networks().first();
    own.map_or(Ok(()), |record| Ok(network::finish(record, pid1)??))
}

/// What differs from the image in the network of a restored tree.
pub fn compare(image: &Image, pid1: Pid) -> Result<Vec<String>, RestoreError> {
    let own = image.networks().first();
    own.map_or(Ok(Vec::new()), |record| Ok(network::differences(record, pid1)?))
}
