//! Bytes that can be told from all others: a pseudo-random sequence of a seed.

/// Fills `bytes` with the sequence of `seed`.
pub fn fill(bytes: &mut [u8], seed: u64) {
    let mut sequence = Sequence(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for chunk in bytes.chunks_mut(8) {
        let word = sequence.next_word().to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// `len` bytes of the sequence of `seed`.
#[must_use]
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, seed);
    bytes
}

/// The first offset where two byte strings differ.
#[must_use]
pub fn difference(left: &[u8], right: &[u8]) -> Option<usize> {
    if left == right {
        return None;
    }
    let at = left.iter().zip(right).position(|(left, right)| left != right);
    Some(at.unwrap_or(left.len().min(right.len())))
}

/// A pseudo-random sequence (xorshift).
#[derive(Debug, Clone, Copy)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The next 64 bits.
    pub fn next_word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_word() % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_two_seeds_differ_early() {
        assert!(difference(&bytes(4096, 1), &bytes(4096, 2)).is_some_and(|at| at < 16));
        assert_eq!(difference(&bytes(4096, 1), &bytes(4096, 1)), None);
        assert_eq!(difference(b"abc", b"abcd"), Some(3));
    }
}
