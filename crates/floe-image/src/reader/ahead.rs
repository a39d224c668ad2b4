//! Reading ahead: records lie one behind the other, and most are short.

use super::ReadError;
use std::{fs::File, io, os::unix::fs::FileExt};

/// Bytes read at once.
const AHEAD_BYTES: usize = 64 << 10;

/// A file with the piece of it that was read last.
pub(super) struct Ahead<'a> {
    file: &'a File,
    offset: u64,
    piece: Vec<u8>,
}

impl<'a> Ahead<'a> {
    pub fn new(file: &'a File) -> Self {
        Self {
            file,
            offset: 0,
            piece: Vec::new(),
        }
    }

    /// Fills the buffer with the bytes at `offset`.
    pub fn read(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), ReadError> {
        let bytes = buffer.len();
        self.fill(buffer, offset)
            .map_err(|source| ReadError::Io { bytes, offset, source })
    }

    fn fill(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if buffer.len() >= AHEAD_BYTES {
            return self.file.read_exact_at(buffer, offset);
        }
        if self.piece(offset, buffer.len()).is_none() {
            self.load(offset)?;
        }
        match self.piece(offset, buffer.len()) {
            Some(found) => buffer.copy_from_slice(found),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    fn piece(&self, offset: u64, bytes: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        self.piece.get(start..start.checked_add(bytes)?)
    }

    fn load(&mut self, offset: u64) -> io::Result<()> {
        self.offset = offset;
        self.piece.resize(AHEAD_BYTES, 0);
        let mut filled = 0;
        while filled < AHEAD_BYTES {
            match self.file.read_at(&mut self.piece[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.piece.truncate(filled);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{AHEAD_BYTES, Ahead};
    use std::io::Write;

    #[test]
    fn gives_what_the_file_has_in_any_order() {
        let mut file = tempfile::tempfile().expect("a file");
        let content: Vec<u8> = (0..3 * AHEAD_BYTES + 5).map(|i| (i / 7) as u8).collect();
        file.write_all(&content).expect("write");
        let mut ahead = Ahead::new(&file);
        for (offset, bytes) in [
            (0, 16),
            (16, 40_000),
            (AHEAD_BYTES - 3, 6),
            (5, 1),
            (2 * AHEAD_BYTES, AHEAD_BYTES + 5),
            (3 * AHEAD_BYTES + 4, 1),
            (3 * AHEAD_BYTES + 5, 0),
        ] {
            let mut buffer = vec![0; bytes];
            ahead.read(&mut buffer, offset as u64).expect("read");
            assert_eq!(buffer, content[offset..offset + bytes], "{bytes} bytes at {offset}");
        }
        assert!(ahead.read(&mut [0; 2], 3 * AHEAD_BYTES as u64 + 4).is_err());
        assert!(ahead.read(&mut [0; 2], u64::MAX - 1).is_err());
    }
}
