//! The fixed parts of the file: header, envelopes, trailer. All integers are little-endian.
//!
//! ```text
//! header    0 magic "FLOEIMG\0"   8 format version u32   12 zero u32
//! envelope  0 magic "FREC"   4 kind u16   6 version u16   8 length u64   16 crc32c of the body   20 crc32c of bytes 0-19
//! trailer   0 offset of the index u64   8 length of the file u64   16 crc32c of bytes 0-15   20 zero u32   24 "FLOEEND\0"
//! ```

use crate::record::RecordKind;

/// Version of the container's format.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 16;
/// Bytes of an envelope, without its body.
pub const ENVELOPE_BYTES: usize = 24;
/// Bytes of the trailer.
pub const TRAILER_BYTES: usize = 32;

const FILE_MAGIC: &[u8; 8] = b"FLOEIMG\0";
const RECORD_MAGIC: &[u8; 4] = b"FREC";
const END_MAGIC: &[u8; 8] = b"FLOEEND\0";

/// A fixed part that is not as it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not an image at all.
    #[error("not a floe image (its first bytes are not those of one)")]
    NotAnImage,
    /// Of a later floe.
    #[error("image format {0} is newer than this floe reads ({FORMAT_VERSION})")]
    Newer(u32),
    /// The end is missing.
    #[error("the image is cut short or was never completed (it has no trailer)")]
    NoTrailer,
    /// The trailer knows another length.
    #[error("the image is cut short or has bytes added: {got} bytes of {wanted}")]
    Length {
        /// Of the file.
        got: u64,
        /// By the trailer.
        wanted: u64,
    },
    /// Damaged.
    #[error("damaged: {0}")]
    Damaged(&'static str),
    /// A kind of a later floe.
    #[error("a record of kind {0} is not known to this floe")]
    UnknownKind(u16),
}

/// An envelope's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// What the body is.
    pub kind: RecordKind,
    /// Version of its shape.
    pub version: u16,
    /// Bytes of the body.
    pub length: u64,
    /// crc32c of the body.
    pub checksum: u32,
}

/// The bytes of the header.
#[must_use]
pub fn header() -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(FILE_MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes
}

/// Checks the header.
///
/// # Errors
/// [`FrameError`].
pub fn check_header(bytes: &[u8; HEADER_BYTES]) -> Result<(), FrameError> {
    if &bytes[..8] != FILE_MAGIC {
        return Err(FrameError::NotAnImage);
    }
    match u32_at(bytes, 8) {
        FORMAT_VERSION if bytes[12..] == [0; 4] => Ok(()),
        FORMAT_VERSION | 0 => Err(FrameError::Damaged("the file's header")),
        version => Err(FrameError::Newer(version)),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

impl Envelope {
    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; ENVELOPE_BYTES] {
        let mut bytes = [0; ENVELOPE_BYTES];
        bytes[..4].copy_from_slice(RECORD_MAGIC);
        bytes[4..6].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[6..8].copy_from_slice(&self.version.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.checksum.to_le_bytes());
        let own = crc32c::crc32c(&bytes[..20]);
        bytes[20..].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    /// Reads and checks one.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn from_bytes(bytes: &[u8; ENVELOPE_BYTES]) -> Result<Self, FrameError> {
        if &bytes[..4] != RECORD_MAGIC || crc32c::crc32c(&bytes[..20]) != u32_at(bytes, 20) {
            return Err(FrameError::Damaged("an envelope's checksum differs"));
        }
        let kind = u16::from_le_bytes([bytes[4], bytes[5]]);
        Ok(Self {
            kind: RecordKind::from_number(kind).ok_or(FrameError::UnknownKind(kind))?,
            version: u16::from_le_bytes([bytes[6], bytes[7]]),
            length: u64_at(bytes, 8),
            checksum: u32_at(bytes, 16),
        })
    }
}

/// The bytes of the trailer of a file of `length` bytes (trailer included).
#[must_use]
pub fn trailer(index: u64, length: u64) -> [u8; TRAILER_BYTES] {
    let mut bytes = [0; TRAILER_BYTES];
    bytes[..8].copy_from_slice(&index.to_le_bytes());
    bytes[8..16].copy_from_slice(&length.to_le_bytes());
    let own = crc32c::crc32c(&bytes[..16]);
    bytes[16..20].copy_from_slice(&own.to_le_bytes());
    bytes[24..].copy_from_slice(END_MAGIC);
    bytes
}

/// Checks the trailer of a file of `length` bytes; returns the offset of the index.
///
/// # Errors
/// [`FrameError`].
pub fn check_trailer(bytes: &[u8; TRAILER_BYTES], length: u64) -> Result<u64, FrameError> {
    if &bytes[24..] != END_MAGIC || bytes[20..24] != [0; 4] || crc32c::crc32c(&bytes[..16]) != u32_at(bytes, 16) {
        return Err(FrameError::NoTrailer);
    }
    let wanted = u64_at(bytes, 8);
    if wanted == length {
        Ok(u64_at(bytes, 0))
    } else {
        Err(FrameError::Length { got: length, wanted })
    }
}
