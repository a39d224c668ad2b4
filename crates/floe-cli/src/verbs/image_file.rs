//! An image named on the command line: a path, or `-` for standard input; and the images that it is based on.

use anyhow::Context as _;
use clap::Args;
use floe_checkpoint::checkpoint::Output;
use floe_image::ImageFiles;
use std::{
    fs::File,
    io::IsTerminal,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

/// Where the images are that another one is based on.
#[derive(Debug, Default, Args)]
pub struct Bases {
    /// An image that this one is based on, or one of those is; may be given several times. Others are looked for beside the one
    /// that is based on them, under the name that they had.
    #[arg(long = "base", value_name = "FILE")]
    pub given: Vec<PathBuf>,
}

/// Opens it, and what it is based on; a stream is read to its end first.
pub fn open(path: &Path, bases: &Bases) -> anyhow::Result<ImageFiles> {
    let is_stream = path == Path::new("-");
    let beside = (!is_stream).then_some(path);
    Ok(ImageFiles::find(open_one(path)?, beside, &bases.given)?)
}

fn open_one(path: &Path) -> anyhow::Result<File> {
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

/// Where an image is to go: a path, or `-` for standard output.
pub fn output(path: &Path) -> anyhow::Result<Output> {
    if path != Path::new("-") {
        return Ok(Output::Path(path.to_owned()));
    }
    let stdout = std::io::stdout();
    anyhow::ensure!(
        !stdout.is_terminal(),
        "an image is no text: send it into a file or a pipe"
    );
    Ok(Output::Stream(File::from(stdout.as_fd().try_clone_to_owned()?)))
}
