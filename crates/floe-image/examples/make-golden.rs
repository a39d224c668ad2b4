//! Makes a golden: an image with the fixed contents of `tests/container/sample/mod.rs`. It is done once for each version of
//! the format or of a record's shape, with the floe that introduced it; the file is never made again.
//!
//! ```text
//! cargo run -p floe-image --example make-golden -- tests/golden/v1.floe
//! ```

#[path = "../tests/container/sample/mod.rs"]
#[allow(dead_code, missing_docs, reason = "the tests use the rest of it")]
mod sample;

use std::{error::Error, fs::OpenOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: make-golden FILE")?;
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    sample::whole().write(Box::new(file))?;
    Ok(())
}
