//! `floe verify`.

use super::image_file::{self, Bases};
use crate::{failure::Outcome, output, progress::Bar};
use clap::Args;
use floe_checkpoint::stage::Observer;
use floe_image::Image;
use std::path::PathBuf;

/// Check that an image is whole: every checksum, and that its parts fit together. So are the images that it is based on.
///
/// Example: floe verify job.floe
#[derive(Debug, Args)]
pub struct Verify {
    /// The image; - for standard input.
    image: PathBuf,
    #[command(flatten)]
    bases: Bases,
}

impl Verify {
    /// Runs the verb.
    pub fn run(self) -> Outcome {
        let image = Image::open(image_file::open(&self.image, &self.bases)?)?;
        let bar = Bar::new();
        let total = image.stored_pages() * 4096;
        image.verify(|done| bar.pages(done, total))?;
        drop(bar);
        let based = match image.bases() {
            0 => String::new(),
            bases => format!(
                ", {} of them in {}",
                image.chunks().len() - image.own_chunks().len(),
                output::count(bases, "base", "bases")
            ),
        };
        output::line(&format!(
            "whole: {} records, {} chunks of pages{based}, {}",
            image.entries().len(),
            image.chunks().len(),
            output::bytes(image.bytes())
        ));
        Ok(0)
    }
}
