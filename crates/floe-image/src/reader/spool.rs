//! A stream can't be read from the end, where the index is, so it goes into a temporary file first.

use crate::frame::{HEADER_BYTES, check_header};
use std::{
    fs::File,
    io::{self, Read, Write},
};

/// Copies a stream into a temporary file without a name, so that it can be read as an image. A stream that does not begin
/// like an image is not copied.
///
/// # Errors
/// Those of reading and writing; `InvalidData` with a [`FrameError`](crate::FrameError) for a stream of another kind.
pub fn spool(mut stream: impl Read) -> io::Result<File> {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    stream.by_ref().take(HEADER_BYTES as u64).read_to_end(&mut header)?;
    if let Ok(header) = <&[u8; HEADER_BYTES]>::try_from(header.as_slice()) {
        check_header(header).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    }
    let mut file = tempfile::tempfile()?;
    file.write_all(&header)?;
    io::copy(&mut stream, &mut file)?;
    Ok(file)
}
