//! Images taken apart and put together again by hand, with right checksums over wrong contents. Written from
//! docs/image-format.md, without the writer's help, so that the two are compared as well.

use std::{fs::File, io::Write};

pub const HEADER_BYTES: usize = 16;
pub const ENVELOPE_BYTES: usize = 24;
pub const TRAILER_BYTES: usize = 32;
pub const PAGES: u16 = 11;
pub const INDEX: u16 = 13;

/// An envelope and its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub kind: u16,
    pub version: u16,
    pub body: Vec<u8>,
}

impl Part {
    /// Its bytes in the file.
    pub fn bytes(&self) -> Vec<u8> {
        [
            envelope(self.kind, self.version, self.body.len() as u64, &self.body),
            self.body.clone(),
        ]
        .concat()
    }
}

/// An envelope that claims `length` for its body.
pub fn envelope(kind: u16, version: u16, length: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"FREC".to_vec();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(version.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(crc32c::crc32c(body).to_le_bytes());
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

pub fn header(version: u32) -> Vec<u8> {
    let mut bytes = b"FLOEIMG\0".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend([0; 4]);
    bytes
}

pub fn trailer(index: u64, length: u64) -> Vec<u8> {
    let mut bytes = index.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(b"FLOEEND\0");
    bytes
}

/// The parts of an image, without the index.
pub fn take_apart(image: &[u8]) -> Vec<Part> {
    let number = |at: usize, bytes: usize| {
        let bytes = &image[at..at + bytes];
        bytes.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)) as usize
    };
    let index = number(image.len() - TRAILER_BYTES, 8);
    let mut parts = Vec::new();
    let mut at = HEADER_BYTES;
    while at < index {
        let body = at + ENVELOPE_BYTES;
        let end = body + number(at + 8, 8);
        parts.push(Part {
            kind: number(at + 4, 2) as u16,
            version: number(at + 6, 2) as u16,
            body: image[body..end].to_vec(),
        });
        at = end;
    }
    assert_eq!(at, index, "records reach to the index");
    parts
}

/// The body of the index of these parts.
pub fn index(parts: &[Part]) -> Vec<u8> {
    let mut at = HEADER_BYTES as u64;
    let (mut records, mut chunks) = (Vec::new(), Vec::new());
    let (mut record_count, mut chunk_count) = (0_u64, 0_u64);
    for part in parts {
        let length = part.body.len() as u64;
        if part.kind == PAGES {
            chunk_count += 1;
            let prefix: Vec<u8> = part.body.iter().copied().chain([0; 16]).take(16).collect();
            chunks.extend(&prefix[..12]);
            chunks.push(u8::from(prefix[12] != 0));
            chunks.extend(at.to_le_bytes());
            chunks.extend((length as u32).to_le_bytes());
        } else {
            record_count += 1;
            records.extend((u32::from(part.kind).wrapping_sub(1)).to_le_bytes());
            records.extend(part.version.to_le_bytes());
            records.extend(at.to_le_bytes());
            records.extend(length.to_le_bytes());
        }
        at += ENVELOPE_BYTES as u64 + length;
    }
    let counts = [record_count.to_le_bytes(), chunk_count.to_le_bytes()];
    [&counts[0][..], &records, &counts[1][..], &chunks].concat()
}

/// An image of these parts, with the index they should have.
pub fn put_together(parts: &[Part]) -> Vec<u8> {
    put_together_with(parts, &index(parts))
}

/// An image of these parts, with this index.
pub fn put_together_with(parts: &[Part], index: &[u8]) -> Vec<u8> {
    let mut bytes = header(1);
    for part in parts {
        bytes.extend(part.bytes());
    }
    let at = bytes.len() as u64;
    bytes.extend(envelope(INDEX, 1, index.len() as u64, index));
    bytes.extend(index);
    let length = bytes.len() + TRAILER_BYTES;
    bytes.extend(trailer(at, length as u64));
    bytes
}

/// The bytes as a file.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("room for an image");
    file
}
