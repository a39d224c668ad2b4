//! Gives the new sandbox's monitor what the old one held: the log, and input that was on its way.

use super::{RestoreError, contents::runs};
use floe_image::{
    Image,
    record::{ConsoleRecord, ContentOwner},
};
use floe_resources::mm::Filler;
use floe_sandbox::Client;
use std::{fs::OpenOptions, path::Path};

/// Writes the log into `folder`; the monitor appends to it.
pub fn restore_log(image: &Image, folder: &Path) -> Result<(), RestoreError> {
    let Some(size) = image.sandbox().log else { return Ok(()) };
    let path = folder.join("log");
    let file = OpenOptions::new()
        .write(true)
        .open(&path)
        .map_err(|source| RestoreError::System {
            action: format!("open the log {}", path.display()),
            source,
        })?;
    Ok(Filler::new(image).file(&file, size, runs(image, ContentOwner::Log))?)
}

/// Hands waiting input, and its end, to the monitor.
pub fn restore_input(image: &Image, folder: &Path) -> Result<(), RestoreError> {
    let ConsoleRecord::Pipes { stdin: Some(input) } = &image.sandbox().console else {
        return Ok(());
    };
    Client::connect(folder)
        .and_then(|client| client.feed(&input.waiting, input.ended))
        .map_err(RestoreError::Input)
}
