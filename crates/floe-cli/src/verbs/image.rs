//! `floe image`: what is done with images alone.

use super::image_file::{self, Bases};
use crate::{Context, act, failure::Outcome, output};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use floe_checkpoint::merge::{STAGES, merge};
use floe_image::Image as Opened;
use std::path::PathBuf;

/// Work on images alone: make one of several.
#[derive(Debug, Args)]
pub struct Image {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Merge(Merge),
}

impl Image {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        match self.verb {
            Verb::Merge(verb) => verb.run(context),
        }
    }
}

/// Make one image of one that is based on others (checkpoint --base): it restores the same and needs none of them.
///
/// The new image appears under its name complete, or not at all; it may be the name of the old one. Images that are based on the old one stay
/// so: they are not based on the new one.
///
/// Example: floe image merge night.floe -o whole.floe
#[derive(Debug, Args)]
struct Merge {
    /// The image.
    #[arg(required_unless_present = "stages")]
    image: Option<PathBuf>,
    /// The image to write; - for standard output.
    #[arg(short, long, value_name = "FILE", required_unless_present = "stages")]
    output: Option<PathBuf>,
    #[command(flatten)]
    bases: Bases,
    /// zstd level, from -7 (fast) to 22 (small).
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-7..=22))]
    level: i32,
    /// Print the names of the stages, at each of which a failure leaves nothing behind.
    #[arg(long)]
    stages: bool,
}

impl Merge {
    fn run(self, context: &Context) -> Outcome {
        if self.stages {
            STAGES.iter().for_each(|stage| output::line(stage));
            return Ok(0);
        }
        let image = self.image.context("name the image")?;
        let image = Opened::open(image_file::open(&image, &self.bases)?)?;
        let bases = image.bases();
        let to = image_file::output(&self.output.context("name the new image with --output")?)?;
        let summary = act::perform(|control| merge(image, to, self.level, control))??;
        context.tell(&format!(
            "{} in one: {} of memory; image {}",
            output::count(bases + 1, "image", "images"),
            output::bytes(summary.pages * 4096),
            output::bytes(summary.bytes)
        ));
        Ok(0)
    }
}
