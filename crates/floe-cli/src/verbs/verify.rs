//! `floe verify`.

use super::image_file;
use crate::{failure::Outcome, output, progress::Bar};
use clap::Args;
use floe_checkpoint::stage::Observer;
use floe_image::Image;
use std::path::PathBuf;

/// Check that an image is whole: every checksum, and that its parts fit together.
///
/// Example: floe verify job.floe
#[derive(Debug, Args)]
pub struct Verify {
    /// The image; - for standard input.
    image: PathBuf,
}

impl Verify {
    /// Runs the verb.
    pub fn run(self) -> Outcome {
        let image = Image::open(image_file::open(&self.image)?)?;
        let bar = Bar::new();
        let total = image.stored_pages() * 4096;
        image.verify(|done| bar.pages(done, total))?;
        drop(bar);
        output::line(&format!(
            "whole: {} records, {} chunks of pages, {}",
            image.entries().len(),
            image.chunks().len(),
            output::bytes(image.bytes())
        ));
        Ok(0)
    }
}
