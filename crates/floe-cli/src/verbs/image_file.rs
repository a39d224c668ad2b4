//! An image named on the command line: a path, or `-` for standard input.

use anyhow::Context as _;
use std::{fs::File, path::Path};

/// Opens it; a stream is read to its end first.
pub fn open(path: &Path) -> anyhow::Result<File> {
    if path == Path::new("-") {
        return floe_image::spool(std::io::stdin().lock()).context("read the image from standard input");
    }
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let kind = file
        .metadata()
        .with_context(|| format!("look at {}", path.display()))?
        .file_type();
    if kind.is_file() {
        return Ok(file);
    }
    anyhow::ensure!(!kind.is_dir(), "{} is a directory, not an image", path.display());
    floe_image::spool(file).with_context(|| format!("read the image from {}", path.display()))
}
