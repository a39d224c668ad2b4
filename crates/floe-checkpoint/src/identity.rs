//! Ids of images, drawn by lot: random(4).

use floe_image::record::ImageId;
use std::{fs::File, io, io::Read};

/// No lot could be drawn.
#[derive(Debug, thiserror::Error)]
#[error("read /dev/urandom, for the id of the image")]
pub struct DrawError(#[source] io::Error);

/// The id of a new image.
pub(crate) fn draw_id() -> Result<ImageId, DrawError> {
    let mut bytes = [0; 16];
    let mut source = File::open("/dev/urandom").map_err(DrawError)?;
    source.read_exact(&mut bytes).map_err(DrawError)?;
    Ok(ImageId(bytes))
}
