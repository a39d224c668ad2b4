//! Moving a sandbox between hosts: [`migrate`](source::migrate) at the source, [`receive`](target::receive) at the target,
//! and between them a [`link`]. Who decides what, and when, is in [`protocol`].

#![forbid(unsafe_code)]

pub mod files;
pub mod keys;
pub mod link;
pub mod protocol;
pub mod record;
pub mod refusal;
pub mod source;
pub mod target;
pub mod tree;

mod worker;

pub use worker::Counts;

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
