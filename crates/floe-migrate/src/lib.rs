//! Moving a sandbox between hosts: [`migrate`](source) at the source, [`receive`](target) at the target.

#![forbid(unsafe_code)]

pub mod protocol;
