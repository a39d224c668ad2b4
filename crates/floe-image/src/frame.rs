//! The two ends of the file. All integers are little-endian.
//!
//! ```text
//! header    0 magic "FLOEIMG\0"   8 format version u32   12 zero u32
//! trailer   0 offset of the index u64   8 length of the file u64   16 crc32c of bytes 0-15   20 zero u32   24 "FLOEEND\0"
//! ```

use crate::envelope::{self, u32_at, u64_at};

/// Version of the container's format.
pub const FORMAT_VERSION: u32 = 1;
/// Version of the index record's shape.
pub(crate) const INDEX_VERSION: u16 = 1;
/// Bytes of all records' bodies together, which a reader holds in memory.
pub(crate) const RECORDS_LIMIT: u64 = 1 << 30;
/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 16;
/// Bytes of the trailer.
pub(crate) const TRAILER_BYTES: usize = 32;

const FILE_MAGIC: &[u8; 8] = b"FLOEIMG\0";
const END_MAGIC: &[u8; 8] = b"FLOEEND\0";

/// A file whose ends are not those of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Empty or shorter than the smallest image.
    #[error("not a floe image: {0} bytes are too few for one")]
    TooShort(u64),
    /// Not an image at all.
    #[error("not a floe image: its first bytes are not those of one")]
    NotAnImage,
    /// Of a later floe.
    #[error("image format {0} is newer than this floe reads ({FORMAT_VERSION})")]
    Newer(u32),
    /// The first bytes are damaged.
    #[error("the header of the image is damaged")]
    Header,
    /// The last bytes are not a trailer.
    #[error("the image is cut short, was never completed, or its last {TRAILER_BYTES} bytes are damaged")]
    NoTrailer,
    /// The trailer knows another length.
    #[error("the image is cut short or has bytes added: {got} of {wanted} bytes")]
    Length {
        /// Of the file.
        got: u64,
        /// By the trailer.
        wanted: u64,
    },
}

/// The bytes of the header.
pub(crate) fn header() -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(FILE_MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes
}

/// Checks the header.
pub(crate) fn check_header(bytes: &[u8; HEADER_BYTES]) -> Result<(), FrameError> {
    if &bytes[..8] != FILE_MAGIC {
        return Err(FrameError::NotAnImage);
    }
    match u32_at(bytes, 8) {
        FORMAT_VERSION if bytes[12..] == [0; 4] => Ok(()),
        FORMAT_VERSION | 0 => Err(FrameError::Header),
        version => Err(FrameError::Newer(version)),
    }
}

/// The bytes of the trailer of a file of `length` bytes (trailer included).
pub(crate) fn trailer(index: u64, length: u64) -> [u8; TRAILER_BYTES] {
    let mut bytes = [0; TRAILER_BYTES];
    bytes[..8].copy_from_slice(&index.to_le_bytes());
    bytes[8..16].copy_from_slice(&length.to_le_bytes());
    let own = crc32c::crc32c(&bytes[..16]);
    bytes[16..20].copy_from_slice(&own.to_le_bytes());
    bytes[24..].copy_from_slice(END_MAGIC);
    bytes
}

/// Checks the trailer of a file of `length` bytes; returns the offset of the index.
pub(crate) fn check_trailer(bytes: &[u8; TRAILER_BYTES], length: u64) -> Result<u64, FrameError> {
    let intact = envelope::is_intact(&bytes[..16], u32_at(bytes, 16));
    if &bytes[24..] != END_MAGIC || bytes[20..24] != [0; 4] || !intact {
        return Err(FrameError::NoTrailer);
    }
    let wanted = u64_at(bytes, 8);
    if wanted == length {
        Ok(u64_at(bytes, 0))
    } else {
        Err(FrameError::Length { got: length, wanted })
    }
}

#[cfg(test)]
mod tests {
    use super::{FrameError, check_header, check_trailer, header, trailer};

    #[test]
    fn a_header_of_another_format_is_named() {
        assert_eq!(check_header(&header()), Ok(()));
        let mut newer = header();
        newer[8] = 9;
        assert_eq!(check_header(&newer), Err(FrameError::Newer(9)));
        assert_eq!(
            FrameError::Newer(9).to_string(),
            "image format 9 is newer than this floe reads (1)"
        );
        assert_eq!(check_header(b"\x7fELF............"), Err(FrameError::NotAnImage));
    }

    #[test]
    fn a_trailer_knows_the_length() {
        let bytes = trailer(64, 4096);
        assert_eq!(check_trailer(&bytes, 4096), Ok(64));
        let cut = FrameError::Length {
            got: 1024,
            wanted: 4096,
        };
        assert_eq!(check_trailer(&bytes, 1024), Err(cut));
    }
}
