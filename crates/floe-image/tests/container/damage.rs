//! Images that accidents happened to: cut, grown, bits flipped, another file altogether.

use crate::{
    forge, sample,
    shared::{chain, read_all, refusal, written},
};
use floe_image::{FrameError, Image, ReadError};
use std::{fs::File, os::unix::fs::FileExt};

fn read_file(file: &File) -> Result<floe_image::VerifyReport, ReadError> {
    Image::open(file.try_clone().expect("duplicate"))?.verify(|_| {})
}

#[test]
fn an_empty_file_is_named_so() {
    assert_eq!(refusal(b""), "not a floe image: 0 bytes are too few for one");
    assert_eq!(refusal(b"x"), "not a floe image: 1 bytes are too few for one");
}

#[test]
fn files_of_another_kind_are_named_so() {
    let text = "The quick brown fox jumps over the lazy dog.\n".repeat(9);
    let program = std::fs::read(std::env::current_exe().expect("a path")).expect("an ELF file");
    for other in [text.as_bytes(), &program[..100_000], &[0; 4096]] {
        assert_eq!(refusal(other), "not a floe image: its first bytes are not those of one");
    }
}

#[test]
fn an_image_of_a_newer_format_is_named_so() {
    let mut image = written(&sample::tiny());
    image[..forge::HEADER_BYTES].copy_from_slice(&forge::header(2));
    assert_eq!(refusal(&image), "image format 2 is newer than this floe reads (1)");
    image[..forge::HEADER_BYTES].copy_from_slice(&forge::header(0));
    assert_eq!(refusal(&image), "the header of the image is damaged");
}

#[test]
fn an_image_cut_at_any_byte_is_refused() {
    let image = written(&sample::whole());
    let file = forge::file(&image);
    for length in (0..image.len()).rev() {
        file.set_len(length as u64).expect("cut");
        match read_file(&file) {
            Err(ReadError::Frame(FrameError::TooShort(got))) => assert_eq!(got, length as u64),
            // A file that ends in the middle ends with a trailer only by accident.
            Err(ReadError::Frame(FrameError::NoTrailer)) => assert!(length >= 48, "at {length}"),
            other => panic!("cut at {length}: {other:?}"),
        }
    }
    let cut = refusal(&image[..image.len() / 2]);
    assert_eq!(
        cut,
        "the image is cut short, was never completed, or its last 32 bytes are damaged"
    );
}

#[test]
fn an_image_cut_in_the_middle_whose_end_is_kept_is_refused() {
    let image = written(&sample::whole());
    let end = image.len() - forge::TRAILER_BYTES;
    for length in (forge::HEADER_BYTES..end).step_by(7) {
        let error = refusal(&[&image[..length], &image[end..]].concat());
        let wanted = format!(
            "the image is cut short or has bytes added: {} of {} bytes",
            length + forge::TRAILER_BYTES,
            image.len()
        );
        assert_eq!(error, wanted);
    }
}

#[test]
fn an_image_with_bytes_added_is_refused() {
    let image = written(&sample::tiny());
    let end = image.len() - forge::TRAILER_BYTES;
    for added in [1, 31, 32, 33, 5000] {
        let behind = refusal(&[&image[..], &vec![0; added]].concat());
        assert!(
            behind.starts_with("the image is cut short, was never completed"),
            "{behind}"
        );
        let twice = refusal(&[&image[..], &vec![0; added], &image[end..]].concat());
        assert!(
            twice.starts_with("the image is cut short or has bytes added"),
            "{twice}"
        );
        let inside = refusal(&[&image[..end], &vec![0; added], &image[end..]].concat());
        assert!(
            inside.starts_with("the image is cut short or has bytes added"),
            "{inside}"
        );
    }
    assert!(refusal(&[&image[..], &image[..]].concat()).starts_with("the image is cut short or has bytes added"));
}

/// Flips bits one after the other; each must be noticed, and all put back must read again.
fn flip(image: &[u8], bits: impl Iterator<Item = usize>) {
    let file = forge::file(image);
    for bit in bits {
        let (at, byte) = (bit / 8, image[bit / 8]);
        file.write_all_at(&[byte ^ 1 << (bit % 8)], at as u64)
            .expect("flip a bit");
        match read_file(&file) {
            Ok(_) => panic!("bit {} of byte {at} of {} makes no difference", bit % 8, image.len()),
            Err(error) => assert!(!chain(&error).contains('\n')),
        }
        file.write_all_at(&[byte], at as u64).expect("flip it back");
    }
    read_file(&file).expect("all bits are back");
}

#[test]
fn each_bit_of_a_small_image_is_protected() {
    let image = written(&sample::tiny());
    flip(&image, 0..image.len() * 8);
}

#[test]
fn bits_all_over_an_image_of_everything_are_protected() {
    let image = written(&sample::whole());
    // A prime, so that each of the eight has its turn.
    flip(&image, (0..image.len() * 8).step_by(149));
}

#[test]
fn damage_is_told_with_its_place() {
    let image = written(&sample::whole());
    let spoil = |at: usize| {
        let mut bytes = image.clone();
        bytes[at] ^= 1;
        refusal(&bytes)
    };
    assert_eq!(
        spoil(forge::HEADER_BYTES + forge::ENVELOPE_BYTES),
        "record 1 (header) at byte 16 is damaged: checksum differs"
    );
    assert_eq!(
        spoil(forge::HEADER_BYTES),
        "record 1 (header) at byte 16 is damaged: no record begins there"
    );
    assert_eq!(
        spoil(forge::HEADER_BYTES + 8),
        "record 1 (header) at byte 16 is damaged: the checksum of its envelope differs"
    );
    let chunk = crate::shared::open(&image).expect("open").chunks()[1];
    assert_eq!(
        spoil(chunk.offset as usize + 2000),
        format!(
            "the chunk of pages 5 to 6 at byte {} is damaged: checksum differs",
            chunk.offset
        )
    );
    let index = image.len() - forge::TRAILER_BYTES - 1;
    assert!(spoil(index).starts_with("the index at byte "), "{}", spoil(index));
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_is_an_error() {
    let file = forge::file(&written(&sample::whole()));
    let image = Image::open(file.try_clone().expect("duplicate")).expect("open");
    file.set_len(100).expect("cut");
    let error = image.verify(|_| {}).expect_err("its pages are gone");
    assert!(matches!(error, ReadError::Io { .. }), "{error:?}");
}

#[test]
fn a_stream_is_spooled_and_another_kind_of_stream_is_not() {
    let bytes = written(&sample::whole());
    let image = Image::open(floe_image::spool(&bytes[..]).expect("spool")).expect("open");
    crate::shared::compare(&image, &sample::whole(), "a spooled image");
    let error = floe_image::spool(std::io::repeat(7)).expect_err("an endless stream of another kind");
    assert_eq!(
        error.to_string(),
        "not a floe image: its first bytes are not those of one"
    );
    for length in [0, 5, 47] {
        let file = floe_image::spool(&bytes[..length]).expect("spool");
        let error = Image::open(file).expect_err("too short");
        assert_eq!(
            error.to_string(),
            format!("not a floe image: {length} bytes are too few for one")
        );
    }
}

#[test]
fn no_bytes_at_all_ways_of_looking_at_it_succeed() {
    for length in [47, 48, 49, 200, 5000] {
        for byte in [0, 1, 0x46, 0xff] {
            assert!(read_all(&vec![byte; length]).is_err());
        }
    }
}
