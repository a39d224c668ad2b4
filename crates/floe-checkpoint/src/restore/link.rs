//! What joins a tree's network to the host's, made again with the addresses that it had: its sockets know them.

use super::{Obstacle, RestoreError};
use floe_image::Image;
use floe_sandbox::{LinkSpec, LinkState, Published, needs_carrier};
use floe_sys::netfilter::Way;

/// Ports to be published in the place of those that were; `None` for these.
pub type Publish<'a> = Option<&'a [Published]>;

/// What the new sandbox is to have.
pub fn spec(image: &Image, publish: Publish<'_>) -> Option<LinkSpec> {
    let record = image.sandbox().link.as_ref()?;
    let before = record.published.iter().map(|port| Published {
        udp: port.udp,
        host: port.host,
        inside: port.inside,
    });
    Some(LinkSpec {
        published: publish.map_or_else(|| before.collect(), <[Published]>::to_vec),
        address: Some(record.address.into()),
    })
}

fn state(image: &Image, publish: Publish<'_>) -> Option<LinkState> {
    let LinkSpec { published, address } = spec(image, publish)?;
    LinkState::with(address?, &published)
}

/// How its packets come through floe's own network, where they do as they are.
pub fn way(image: &Image, publish: Publish<'_>) -> Option<Way> {
    let state = if needs_carrier() { None } else { state(image, publish) };
    state.map(|state| state.way())
}

/// What stands in the way of it.
///
/// # Errors
/// [`RestoreError`] where the host does not tell its addresses.
pub fn obstacles(image: &Image, publish: Publish<'_>) -> Result<Vec<Obstacle>, RestoreError> {
    let Some(state) = state(image, publish) else {
        let lacking = publish.map(|_| Obstacle {
            object: "published ports".to_owned(),
            reason: "the tree's network was not joined to the host's (run --net new)".to_owned(),
        });
        return Ok(lacking.into_iter().collect());
    };
    let mut found = Vec::new();
    let reason = state.obstacle();
    let reason = reason.map_err(RestoreError::system("look at the addresses of the host"))?;
    if let Some(reason) = reason {
        found.push(Obstacle {
            object: format!("address {} of the sandbox", state.address),
            reason,
        });
    }
    let port = state.port_in_the_way();
    let port = port.map_err(RestoreError::system("take the published ports"))?;
    found.extend(port.map(|(port, reason)| Obstacle {
        object: format!("published port {port}"),
        reason: format!("{reason}; --publish gives others"),
    }));
    Ok(found)
}
