//! Addresses of the host's network that sockets of an image are bound to, and that somebody else has: ip(7), tcp(7), udp(7); and names of
//! unix sockets that are no paths, unix(7). Addresses are tried before anything is made, each by a socket that is bound and
//! never listens.

use super::{inet, unix};
use crate::file::{FileError, tun};
use floe_image::Image;

/// Sockets of the tree root's network whose addresses can't be had in floe's own, and why not.
///
/// # Errors
/// [`FileError`] for a record that can't be read.
pub fn taken_addresses(image: &Image) -> Result<Vec<(String, String)>, FileError> {
    let mut found = Vec::new();
    // Their devices come with files, and their addresses with them.
    let brings_addresses = !tun::names(image)?.is_empty();
    // All at the same time, as the tree has them.
    let mut held = Vec::new();
    for record in image.open_files().iter().filter(|record| record.network == 0) {
        match inet::try_address(record, brings_addresses)? {
            Ok(socket) => held.extend(socket),
            Err(reason) => found.push((format!("open file {}", record.id), reason)),
        }
        if let Some(reason) = unix::taken_name(record)? {
            found.push((format!("open file {}", record.id), reason));
        }
    }
    Ok(found)
}
