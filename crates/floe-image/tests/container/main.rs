//! The image's container, from outside: what is written reads back, and whatever else is given as an image ends in an
//! error, in bounded memory.

#![allow(missing_docs, reason = "nobody but these tests sees it")]
// For lists in JSON of all kinds of files.
#![recursion_limit = "256"]

mod chains;
mod contradictions;
mod damage;
mod dice;
mod document;
mod forge;
mod forged;
mod golden;
mod hoard;
mod mounts;
mod network;
mod round_trip;
mod sample;
mod shared;
mod writer;

#[global_allocator]
static ALLOCATOR: hoard::Hoard = hoard::Hoard;
