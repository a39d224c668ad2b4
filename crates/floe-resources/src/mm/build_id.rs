//! What tells ELF files apart: the build-id, a note that linkers write (NT_GNU_BUILD_ID), elf(5).

use std::{fs::File, io, os::unix::fs::FileExt};

/// 64-bit and little-endian.
const MAGIC: &[u8] = b"\x7fELF\x02\x01";
const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
/// No file has more segments with notes in the first so many.
const SEGMENTS: usize = 128;
/// Bytes of notes that are looked at.
const NOTES: u64 = 64 << 10;
const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;

/// The build-id of a file; empty where it is no ELF file, or one without.
///
/// # Errors
/// Those of pread(2).
pub fn build_id(file: &File) -> io::Result<Vec<u8>> {
    let header = part(file, 0, HEADER_BYTES)?;
    if header.len() < HEADER_BYTES || !header.starts_with(MAGIC) {
        return Ok(Vec::new());
    }
    let (place, count) = (word(&header, 32), usize::from(half(&header, 56)));
    let segments = part(file, place, count.min(SEGMENTS) * SEGMENT_BYTES)?;
    for segment in segments.chunks_exact(SEGMENT_BYTES) {
        if number(segment, 0) == PT_NOTE {
            let bytes = word(segment, 32).min(NOTES) as usize;
            let align = if word(segment, 48) == 8 { 8 } else { 4 };
            if let Some(found) = note(&part(file, word(segment, 8), bytes)?, align) {
                return Ok(found);
            }
        }
    }
    Ok(Vec::new())
}

/// The build-id among notes: lengths of name and description, type, name, description; each of both padded to `align`.
fn note(mut notes: &[u8], align: usize) -> Option<Vec<u8>> {
    while notes.len() > 12 {
        let (name, description) = (number(notes, 0) as usize, number(notes, 4) as usize);
        let start = 12 + name.checked_next_multiple_of(align)?;
        let end = start.checked_add(description)?;
        let is_it = number(notes, 8) == NT_GNU_BUILD_ID && notes[12..].starts_with(b"GNU\0") && name == 4;
        if is_it {
            return notes.get(start..end).map(<[u8]>::to_vec);
        }
        notes = notes.get(end.checked_next_multiple_of(align)?..)?;
    }
    None
}

/// Up to `bytes` of a file.
fn part(file: &File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut part = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        match offset
            .checked_add(filled as u64)
            .map_or(Ok(0), |at| file.read_at(&mut part[filled..], at))
        {
            Ok(0) => break,
            Ok(more) => filled += more,
            // An offset that no file can have.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    part.truncate(filled);
    Ok(part)
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from(half(bytes, at)) | u32::from(half(bytes, at + 2)) << 16
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from(number(bytes, at)) | u64::from(number(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::{build_id, note};
    use floe_sys::memfd;
    use std::{fs::File, io::Write};

    #[test]
    fn notes_are_read() {
        let mut notes = Vec::new();
        for (kind, text) in [(5_u32, &b"abcdefgh"[..]), (3, b"0123456789")] {
            notes.extend(4_u32.to_le_bytes());
            notes.extend((text.len() as u32).to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(b"GNU\0");
            notes.extend(text);
        }
        assert_eq!(note(&notes, 4).as_deref(), Some(&b"0123456789"[..]));
        assert_eq!(note(&notes[..notes.len() - 1], 4), None);
        assert_eq!(note(&[0xff; 40], 4), None);
    }

    #[test]
    fn only_programs_have_one() {
        let own = File::open("/proc/self/exe").expect("this program");
        assert!(build_id(&own).is_ok_and(|id| id.len() <= 64), "{:?}", build_id(&own));
        let mut other = File::from(memfd::create(c"other", 0).expect("a file"));
        other.write_all(b"\x7fELF\x02\x01").expect("write");
        assert_eq!(build_id(&other).ok(), Some(Vec::new()));
        other.write_all(&[0xff; 200]).expect("write");
        assert_eq!(build_id(&other).ok(), Some(Vec::new()));
    }
}
