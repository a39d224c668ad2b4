//! The image: records and their container. Knows no kernel and nothing else of floe.
//!
//! The format is drawn in `docs/image-format.md`. [`ImageWriter`] writes one front to back; [`Image`] reads one. Whatever
//! bytes are given as an image, reading them ends in an error or in records that fit together.
//!
//! ```text
//! header | envelope body | envelope body | … | index | trailer        records and chunks of pages, in the writer's order
//! ```

#![forbid(unsafe_code)]

pub mod cgroup_settings;
pub mod check;
pub mod chunk;
pub mod codec;
pub mod record;

mod envelope;
mod frame;
mod numbering;
mod reader;
mod writer;

pub use envelope::EnvelopeError;
pub use frame::{FORMAT_VERSION, FrameError};
pub use numbering::Numbering;
pub use reader::{
    ChainError, ChunkScratch, Coming, Fault, Image, ImageFiles, MAX_BASES, Place, ReadError, VerifyReport, spool,
};
pub use writer::{Effort, Efforts, FillError, ImageWriter, Level, Summary, WriteError, WriteOptions};
