//! Gives the reader whatever the fuzzer makes: it may refuse it, but not panic, and not take more memory than the limit
//! that libFuzzer watches. In builds for fuzzing floe-image takes every checksum for right.
//!
//! The first byte of an input says what the rest is:
//! - even: a whole image; the length in its trailer is set right, so that inserting bytes does not end at the trailer.
//! - odd: the parts of one, each a kind u8, a length u16 and a body; envelopes, index and trailer are put around them.
#![no_main]

use floe_image::Image;
use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::{fs::File, io::Write};

const TRAILER_BYTES: usize = 32;
const PAGES: u8 = 11;

fuzz_target!(|input: &[u8]| {
    let Some((how, rest)) = input.split_first() else { return };
    let image = if how % 2 == 0 { with_length(rest) } else { around(rest) };
    let file = memfd_create(c"image", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    let mut file = File::from(file);
    file.write_all(&image).expect("write to memory");
    if let Ok(image) = Image::open(file) {
        // Whether the pages unpack is the last thing that can be wrong.
        let _verified = image.verify(|_| {});
    }
});

fn with_length(bytes: &[u8]) -> Vec<u8> {
    let mut image = bytes.to_vec();
    if let Some(trailer) = image.len().checked_sub(TRAILER_BYTES) {
        let length = image.len() as u64;
        image[trailer + 8..trailer + 16].copy_from_slice(&length.to_le_bytes());
    }
    image
}

fn around(mut bytes: &[u8]) -> Vec<u8> {
    let mut image = b"FLOEIMG\0\x01\0\0\0\0\0\0\0".to_vec();
    let (mut records, mut chunks) = (Vec::new(), Vec::new());
    let (mut record_count, mut chunk_count) = (0_u64, 0_u64);
    while let [kind, low, high, rest @ ..] = bytes {
        let (body, rest) = rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len()));
        bytes = rest;
        let (at, length) = (image.len() as u64, body.len() as u64);
        if *kind == PAGES {
            let prefix = body.get(..16).unwrap_or(&[0; 16]);
            chunk_count += 1;
            chunks.extend(&prefix[..12]);
            chunks.push(u8::from(prefix[12] != 0));
            chunks.extend(at.to_le_bytes());
            chunks.extend((length as u32).to_le_bytes());
        } else {
            record_count += 1;
            records.extend(u32::from(*kind).wrapping_sub(1).to_le_bytes());
            records.extend(1_u16.to_le_bytes());
            records.extend(at.to_le_bytes());
            records.extend(length.to_le_bytes());
        }
        enveloped(&mut image, *kind, body);
    }
    let index = [
        &record_count.to_le_bytes()[..],
        &records,
        &chunk_count.to_le_bytes()[..],
        &chunks,
    ];
    let at = image.len() as u64;
    enveloped(&mut image, 13, &index.concat());
    image.extend(at.to_le_bytes());
    image.extend([0; 16]);
    image.extend(b"FLOEEND\0");
    with_length(&image)
}

fn enveloped(image: &mut Vec<u8>, kind: u8, body: &[u8]) {
    image.extend(b"FREC");
    image.extend(u16::from(kind).to_le_bytes());
    image.extend(1_u16.to_le_bytes());
    image.extend((body.len() as u64).to_le_bytes());
    image.extend([0; 8]);
    image.extend(body);
}
