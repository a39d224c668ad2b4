//! What joins a tree's network to the host's, made again with the addresses that it had: its sockets know them.

use super::{Obstacle, RestoreError};
use floe_image::Image;
use floe_sandbox::{LinkSpec, LinkState, Published};
use floe_sys::netfilter::Way;

/// What the new sandbox is to have.
pub fn spec(image: &Image) -> Option<LinkSpec> {
    let record = image.sandbox().link.as_ref()?;
    let published = record.published.iter().map(|port| Published {
        udp: port.udp,
        host: port.host,
        inside: port.inside,
    });
    Some(LinkSpec {
        published: published.collect(),
        address: Some(record.address.into()),
    })
}

fn state(image: &Image) -> Option<LinkState> {
    let LinkSpec { published, address } = spec(image)?;
    LinkState::with(address?, &published)
}

/// How its packets come through floe's own network.
pub fn way(image: &Image) -> Option<Way> {
    state(image).map(|state| state.way())
}

/// What stands in the way of it.
///
/// # Errors
/// [`RestoreError`] where the host does not tell its addresses.
pub fn obstacle(image: &Image) -> Result<Option<Obstacle>, RestoreError> {
    let Some(state) = state(image) else {
        return Ok(None);
    };
    let reason = state.obstacle();
    let reason = reason.map_err(RestoreError::system("look at the addresses of the host"))?;
    if let Some(reason) = reason {
        return Ok(Some(Obstacle {
            object: format!("address {} of the sandbox", state.address),
            reason: reason.to_owned(),
        }));
    }
    let taken = state.taken_port();
    let taken = taken.map_err(RestoreError::system("take the published ports"))?;
    Ok(taken.map(|port| Obstacle {
        object: format!("published port {port}"),
        reason: "another sandbox or program has the host's port".to_owned(),
    }))
}
