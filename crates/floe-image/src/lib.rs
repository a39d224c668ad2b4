//! The image: records and their container. Knows no kernel and nothing else of floe.
//!
//! The format is drawn in `docs/image-format.md`. [`ImageWriter`] writes one front to back; [`Image`] reads one. Whatever
//! bytes are given as an image, reading them ends in an error or in records that fit together.

pub mod chunk;
pub mod codec;
pub mod record;

mod check;
mod envelope;
mod reader;
mod writer;

pub use envelope::{FORMAT_VERSION, FrameError};
pub use reader::{ChunkScratch, Image, ReadError, spool};
pub use writer::{ImageWriter, PageBuffer, Summary, WriteError, WriteOptions};
