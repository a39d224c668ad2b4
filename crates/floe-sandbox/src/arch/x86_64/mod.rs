//! x86-64.

mod init;

pub use init::init_code;
