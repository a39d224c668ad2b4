//! The verbs, one file each.

pub mod attach;
pub mod check;
pub mod checkpoint;
pub mod cpu;
pub mod demo;
pub mod exec;
pub mod freeze;
pub mod image;
pub mod inspect;
pub mod keys;
pub mod kill;
pub mod logs;
pub mod migrate;
pub mod ns;
pub mod pid;
pub mod ps;
pub mod receive;
pub mod restore;
pub mod rm;
pub mod run;
pub mod tcp;
pub mod tty;
pub mod verify;
pub mod wait;

mod foreground;
mod image_file;
mod limits;
mod map;
mod mounts;
mod owner;
mod publish;

/// A time that is given in seconds.
fn seconds(text: &str) -> Result<std::time::Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    std::time::Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}
