//! The one place where bincode is used: fixed-width little-endian integers, a limit on what a body may decode to, no
//! trailing bytes. Page contents never go through it.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::{Serialize, de::DeserializeOwned};

/// Bytes a record's body may have, and that decoding it may claim.
pub const BODY_LIMIT: usize = 256 << 20;

/// A record that can't be written.
#[derive(Debug, thiserror::Error)]
#[error("encode a record")]
pub struct EncodeError(#[from] bincode::error::EncodeError);

/// Bytes that are no such record.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Malformed.
    #[error("the bytes are not a record of this kind")]
    Malformed(#[from] bincode::error::DecodeError),
    /// More bytes than the record has.
    #[error("{0} bytes are left over behind the record")]
    Trailing(usize),
    /// Too long.
    #[error("{0} bytes are more than a record may have")]
    TooLong(usize),
}

fn configuration() -> Configuration<LittleEndian, Fixint, Limit<BODY_LIMIT>> {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<BODY_LIMIT>()
}

/// Encodes a record's body.
///
/// # Errors
/// [`EncodeError`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodeError> {
    Ok(bincode::serde::encode_to_vec(value, configuration())?)
}

/// Decodes a record's body, all of it.
///
/// # Errors
/// [`DecodeError`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > BODY_LIMIT {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    let (value, used) = bincode::serde::decode_from_slice(bytes, configuration())?;
    if used == bytes.len() {
        Ok(value)
    } else {
        Err(DecodeError::Trailing(bytes.len() - used))
    }
}

#[cfg(test)]
mod tests {
    use super::{DecodeError, decode, encode};

    #[test]
    fn reads_back_and_rejects_the_rest() {
        let mut bytes = encode(&(7u32, vec![1u8, 2])).expect("encode");
        assert_eq!(decode::<(u32, Vec<u8>)>(&bytes).expect("decode"), (7, vec![1, 2]));
        bytes.push(0);
        assert!(matches!(
            decode::<(u32, Vec<u8>)>(&bytes),
            Err(DecodeError::Trailing(1))
        ));
    }

    #[test]
    fn a_forged_length_allocates_nothing() {
        let bytes = u64::MAX.to_le_bytes();
        assert!(matches!(decode::<Vec<u64>>(&bytes), Err(DecodeError::Malformed(_))));
    }
}
