//! What stands before the body of every record and every chunk of pages. All integers are little-endian.
//!
//! ```text
//! envelope  0 magic "FREC"   4 kind u16   6 version u16   8 length u64   16 crc32c of the body   20 crc32c of bytes 0-19
//! ```

use crate::record::RecordKind;

/// Bytes of an envelope, without its body.
pub(crate) const ENVELOPE_BYTES: usize = 24;

const MAGIC: &[u8; 4] = b"FREC";

/// Bytes that are no envelope this floe knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not the bytes of any envelope.
    #[error("no record begins there")]
    Magic,
    /// Damaged.
    #[error("the checksum of its envelope differs")]
    Checksum,
    /// A kind of a later floe.
    #[error("its kind, {0}, is not known to this floe")]
    UnknownKind(u16),
}

/// An envelope's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// What the body is.
    pub kind: RecordKind,
    /// Version of its shape.
    pub version: u16,
    /// Bytes of the body.
    pub length: u64,
    /// crc32c of the body.
    pub checksum: u32,
}

impl Envelope {
    /// The envelope of a record's body.
    pub fn of(kind: RecordKind, version: u16, body: &[u8]) -> Self {
        Self {
            kind,
            version,
            length: body.len() as u64,
            checksum: crc32c::crc32c(body),
        }
    }

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; ENVELOPE_BYTES] {
        let mut bytes = [0; ENVELOPE_BYTES];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..6].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[6..8].copy_from_slice(&self.version.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.checksum.to_le_bytes());
        let own = crc32c::crc32c(&bytes[..20]);
        bytes[20..].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    /// Reads and checks one.
    pub fn from_bytes(bytes: &[u8; ENVELOPE_BYTES]) -> Result<Self, EnvelopeError> {
        if &bytes[..4] != MAGIC {
            return Err(EnvelopeError::Magic);
        }
        if !is_intact(&bytes[..20], u32_at(bytes, 20)) {
            return Err(EnvelopeError::Checksum);
        }
        let kind = u16::from_le_bytes([bytes[4], bytes[5]]);
        Ok(Self {
            kind: RecordKind::from_number(kind).ok_or(EnvelopeError::UnknownKind(kind))?,
            version: u16::from_le_bytes([bytes[6], bytes[7]]),
            length: u64_at(bytes, 8),
            checksum: u32_at(bytes, 16),
        })
    }
}

/// Whether bytes have this checksum. A fuzzer could not get past it, so in its builds everything is intact.
pub(crate) fn is_intact(bytes: &[u8], checksum: u32) -> bool {
    cfg!(fuzzing) || crc32c::crc32c(bytes) == checksum
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes were sliced"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes were sliced"))
}

#[cfg(test)]
mod tests {
    use super::{Envelope, EnvelopeError};
    use crate::record::RecordKind;

    #[test]
    fn reads_back() {
        let envelope = Envelope::of(RecordKind::Process, 3, b"body");
        assert_eq!(Envelope::from_bytes(&envelope.to_bytes()), Ok(envelope));
    }

    #[test]
    fn damage_and_unknown_kinds_are_told_apart() {
        let mut bytes = Envelope::of(RecordKind::Process, 1, b"").to_bytes();
        bytes[4] = 99;
        assert_eq!(Envelope::from_bytes(&bytes), Err(EnvelopeError::Checksum));
        let own = crc32c::crc32c(&bytes[..20]);
        bytes[20..].copy_from_slice(&own.to_le_bytes());
        assert_eq!(Envelope::from_bytes(&bytes), Err(EnvelopeError::UnknownKind(99)));
        bytes[0] = 0;
        assert_eq!(Envelope::from_bytes(&bytes), Err(EnvelopeError::Magic));
    }
}
