//! The verbs, one file each.

pub mod attach;
pub mod check;
pub mod checkpoint;
pub mod demo;
pub mod exec;
pub mod freeze;
pub mod inspect;
pub mod kill;
pub mod logs;
pub mod ns;
pub mod pid;
pub mod ps;
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
mod publish;
