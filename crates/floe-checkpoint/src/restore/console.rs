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
    let (waiting, ended) = match &image.sandbox().console {
        ConsoleRecord::Pipes { stdin: Some(input) } => (&input.waiting, input.ended),
        ConsoleRecord::Terminal(terminal) if !terminal.input.beyond.is_empty() => (&terminal.input.beyond, false),
        ConsoleRecord::Terminal(_) | ConsoleRecord::Pipes { stdin: None } | ConsoleRecord::None => return Ok(()),
    };
    Client::connect(folder)
        .and_then(|client| client.feed(waiting, ended))
        .map_err(RestoreError::Input)
}
