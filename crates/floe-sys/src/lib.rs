//! Kernel interfaces that nix and libc lack, as thin safe calls, and parsers for /proc.
//!
//! Most of floe's `unsafe` lives here. Nothing in this crate knows what a checkpoint or a sandbox is.

pub mod pid;

pub use pid::Pid;
