//! The one place where bincode is used: fixed-width little-endian integers, a limit on what a body may decode to, no
//! trailing bytes. Page contents never go through it.
//!
//! The types that go through it must not be recursive (a forged body would overflow the stack) and must not hold lists of
//! items that encode to nothing (a forged length would spin).

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;

/// Bytes a record's body may have at most.
pub const BODY_LIMIT: usize = 256 << 20;

/// bincode allocates a text's length before it reads the text, so what a short body may claim is limited by these.
const SMALL: usize = 64 << 10;
const MEDIUM: usize = 4 << 20;

/// A record that can't be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// A value without an encoding.
    #[error("encode a record")]
    Value(#[from] bincode::error::EncodeError),
    /// Too long to be read back.
    #[error("encode a record: {0} bytes are more than one may have ({BODY_LIMIT})")]
    TooLong(usize),
}

/// Bytes that are no such record.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Malformed.
    #[error("the bytes are not a record of this kind")]
    Malformed(#[from] Malformed),
    /// More bytes than the record has.
    #[error("{0} bytes are left over behind the record")]
    Trailing(usize),
    /// Too long.
    #[error("{0} bytes are more than a record may have ({BODY_LIMIT})")]
    TooLong(usize),
}

/// What bincode found, in words.
#[derive(Debug)]
pub struct Malformed(bincode::error::DecodeError);

impl std::error::Error for Malformed {}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use bincode::error::DecodeError as Found;
        f.write_str(match &self.0 {
            Found::UnexpectedEnd { .. } | Found::LimitExceeded => "something reaches beyond their end",
            Found::UnexpectedVariant { .. } => "a choice is none of those there are",
            Found::InvalidBooleanValue(_) => "a yes or no is neither",
            Found::Utf8 { .. } => "a text is not UTF-8",
            // What serde says, of a choice in most cases.
            Found::OtherString(text) => text,
            other => return write!(f, "{other}"),
        })
    }
}

type Config<const LIMIT: usize> = Configuration<LittleEndian, Fixint, Limit<LIMIT>>;

fn configuration<const LIMIT: usize>() -> Config<LIMIT> {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<LIMIT>()
}

/// Encodes a record's body.
///
/// # Errors
/// [`EncodeError`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let bytes = bincode::serde::encode_to_vec(value, configuration::<BODY_LIMIT>())?;
    if bytes.len() > BODY_LIMIT {
        return Err(EncodeError::TooLong(bytes.len()));
    }
    Ok(bytes)
}

/// Decodes a record's body, all of it. The memory it takes is bounded by the body's length, not by the lengths the body
/// claims.
///
/// # Errors
/// [`DecodeError`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    match bytes.len() {
        0..=SMALL => decode_within::<T, SMALL>(bytes),
        length if length <= MEDIUM => decode_within::<T, MEDIUM>(bytes),
        length if length <= BODY_LIMIT => decode_within::<T, BODY_LIMIT>(bytes),
        length => Err(DecodeError::TooLong(length)),
    }
}

fn decode_within<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, configuration::<LIMIT>()).map_err(Malformed)?;
    if used == bytes.len() {
        Ok(value)
    } else {
        Err(DecodeError::Trailing(bytes.len() - used))
    }
}

#[cfg(test)]
mod tests {
    use super::{BODY_LIMIT, DecodeError, EncodeError, MEDIUM, SMALL, decode, encode};

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
    fn bodies_around_the_limits_read_back() {
        for length in [SMALL - 9, SMALL - 8, SMALL - 7, MEDIUM - 8, MEDIUM - 7] {
            let text = "x".repeat(length);
            let bytes = encode(&text).expect("encode");
            assert_eq!(decode::<String>(&bytes).expect("decode"), text);
        }
    }

    #[test]
    fn a_body_that_could_not_be_read_back_is_not_written() {
        let text = "x".repeat(BODY_LIMIT);
        assert!(matches!(encode(&text), Err(EncodeError::TooLong(n)) if n == BODY_LIMIT + 8));
        assert!(matches!(
            decode::<String>(&vec![0; BODY_LIMIT + 1]),
            Err(DecodeError::TooLong(_))
        ));
    }

    #[test]
    fn what_is_malformed_is_told_in_words() {
        let reason = |error: DecodeError| match error {
            DecodeError::Malformed(reason) => reason.to_string(),
            other => panic!("{other:?}"),
        };
        let one = |bytes: &[u8]| reason(decode::<Vec<Option<bool>>>(bytes).expect_err("malformed"));
        assert_eq!(one(&[1, 0, 0]), "something reaches beyond their end");
        assert_eq!(one(&[1, 0, 0, 0, 0, 0, 0, 0, 1]), "something reaches beyond their end");
        assert_eq!(one(&[1, 0, 0, 0, 0, 0, 0, 0, 2]), "a choice is none of those there are");
        assert_eq!(one(&[1, 0, 0, 0, 0, 0, 0, 0, 1, 2]), "a yes or no is neither");
        let choice = decode::<Result<u8, u8>>(&[7, 0, 0, 0, 1]);
        assert_eq!(
            reason(choice.expect_err("malformed")),
            "invalid value: integer `7`, expected `Ok` or `Err`"
        );
        let text = decode::<String>(&[1, 0, 0, 0, 0, 0, 0, 0, 0xff]);
        assert_eq!(reason(text.expect_err("malformed")), "a text is not UTF-8");
    }

    #[test]
    fn a_forged_length_is_malformed() {
        for length in [u64::MAX, 1 << 40, SMALL as u64 + 1] {
            let bytes = length.to_le_bytes();
            assert!(matches!(decode::<Vec<u64>>(&bytes), Err(DecodeError::Malformed(_))));
            assert!(matches!(decode::<String>(&bytes), Err(DecodeError::Malformed(_))));
        }
    }
}
