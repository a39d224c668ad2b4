//! The image: records and their container. Knows no kernel and nothing else of floe.
//!
//! The format is drawn in `docs/image-format.md`.

pub mod record;
